"""Arrays of other libraries: NumPy, torch and whatever has `__dlpack__` in, the same kind out."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from mmcore.functional.stand_ins import check_is_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

ARRAYS = "a torch tensor, a NumPy array or an array with __dlpack__"


def is_array(value: object) -> bool:
    """Whether `as_tensor` takes it."""
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "__dlpack__")


def as_tensor(name: str, value: object) -> Tensor:
    """The numbers of an array as a tensor without a gradient, which is not to be written to.

    It shares the array's memory, except where torch has no such strides or byte order.
    """
    if isinstance(value, Tensor):
        check_is_tensor(name, value)
        return value.detach()
    if isinstance(value, np.ndarray):
        return _of_numpy(name, value)
    if hasattr(value, "__dlpack__"):
        return _of_dlpack(name, value)
    is_list = isinstance(value, (Sequence, np.generic)) and not isinstance(value, str)
    cure = f": pass numpy.asarray({name})" if is_list else ""
    raise TypeError(f"{name} must be {ARRAYS}, got {type(value).__name__}{cure}")


def like(value: object, result: Tensor) -> Any:
    """`result` as an array of the library that `value` is of, on the device where it is."""
    if isinstance(value, Tensor):
        return result
    if isinstance(value, np.ndarray):
        return result.numpy()
    library = _library(value)
    return result if library is None else library.from_dlpack(result)


def _library(value: object) -> Any:
    """The library of an array, by the array API standard or by the name of its module."""
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__()
    library = sys.modules.get(type(value).__module__.split(".")[0])
    return library if hasattr(library, "from_dlpack") else None


def _of_dlpack(name: str, value: object) -> Tensor:
    try:
        return from_dlpack(value)
    except (RuntimeError, BufferError, TypeError, ValueError) as error:
        kind = type(value).__name__
        raise TypeError(
            f"{name}, of type {kind}, is nothing that torch can share: {error}"
        ) from error


class _Writable:
    """The memory of an array that may not be written to, as torch wants to see it.

    torch warns of memory that may not be written to, such as that of a file, on whatever thread.
    """

    def __init__(self, array: NDArray[Any]) -> None:
        interface = dict(array.__array_interface__)
        self.__array_interface__ = interface | {"data": (interface["data"][0], False)}
        self.array = array  # keeps the memory


def _of_numpy(name: str, array: NDArray[Any]) -> Tensor:
    if array.dtype.name == "bfloat16":  # of ml_dtypes, which torch does not know
        return _of_numpy(name, array.view(np.int16)).view(torch.bfloat16)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(stride < 0 or stride % array.itemsize for stride in array.strides):
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Writable(array))
    try:
        return torch.from_numpy(array)
    except TypeError as error:
        raise TypeError(f"{name} must be of a dtype that torch has, got {array.dtype}") from error
