"""Checks of shapes, dtypes and devices, made once, before any kernel runs.

Every message names the argument, what was expected and what came. Checks of values (is a target in
range?) live inside the ops, where torch.compile cannot trace them away. Where a check returns a
value, it is the argument as the ops take it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from numbers import Real

import numpy as np
import torch
from torch import Tensor
from torch._C import _functorch as functorch

from mmcore.functional import operands
from mmcore.functional.options import as_integer as as_integer
from mmcore.functional.options import as_number as as_number
from mmcore.functional.options import as_sequence as as_sequence
from mmcore.functional.options import check_choice as check_choice
from mmcore.functional.options import check_count as check_count
from mmcore.functional.options import check_flag as check_flag
from mmcore.functional.options import check_fraction as check_fraction
from mmcore.functional.options import check_not_negative as check_not_negative
from mmcore.functional.options import check_positive as check_positive
from mmcore.functional.stand_ins import check_is_tensor

# Those that int64 holds.
INTEGERS = (
    torch.int64, torch.int32, torch.int16, torch.int8, torch.uint32, torch.uint16, torch.uint8,
)  # fmt: skip
# Dispatch modes of torch that record what is done to tensors instead of doing it.
TRACING = (torch._C._TorchDispatchModeKey.FAKE, torch._C._TorchDispatchModeKey.PROXY)


def has_values(value: Tensor) -> bool:
    """Whether the host can read the numbers of `value` at once.

    It cannot on a GPU, which it would wait for, and while anything traces the call.
    """
    is_compiling = torch.compiler.is_compiling()
    return not is_compiling and value.device.type == "cpu" and not is_symbolic(value)


def is_symbolic(value: Tensor) -> bool:
    """Whether `value` has no numbers of its own.

    Meta and fake tensors have none, nor has one of which `torch.func.vmap` makes several, or one in
    a trace by make_fx.
    """
    if torch.compiler.is_dynamo_compiling():
        return False  # what it traces is real, and whoever reads it breaks the graph
    while functorch.is_gradtrackingtensor(value):
        value = functorch.get_unwrapped(value)
    if functorch.is_functorch_wrapped_tensor(value) or value.is_meta:
        return True
    is_plain = type(value).__torch_dispatch__ is Tensor.__torch_dispatch__
    return not is_plain or any(torch._C._get_dispatch_mode(mode) is not None for mode in TRACING)


def check_tensor(name: str, value: object) -> None:
    """`value` is a tensor of real floating-point numbers."""
    check_is_tensor(name, value)
    assert isinstance(value, Tensor)
    if not value.dtype.is_floating_point:
        cure = f": convert it, such as by {name}.float()" if value.dtype in INTEGERS else ""
        raise TypeError(
            f"{name} must be of a floating-point dtype, got {_short(value.dtype)}{cure}"
        )


def check_matrix(name: str, value: object) -> None:
    """`value` is a two-dimensional tensor with at least one column."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got {value.ndim}")
    if value.shape[1] == 0:
        raise ValueError(f"{name} must have at least 1 column, got shape {tuple(value.shape)}")


def check_rows(name: str, value: Tensor) -> None:
    """`value` has at least one row."""
    if value.shape[0] == 0:
        raise ValueError(f"{name} must have at least 1 row, got shape {tuple(value.shape)}")


def check_matches(name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    """`value` has the dtype and the device of `x`."""
    if value.dtype != x.dtype:
        raise TypeError(
            f"{name} must have dtype {_short(x.dtype)} to match {x_name}, got {_short(value.dtype)}"
        )
    check_device(name, value, x, x_name)


def check_device(name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    """`value` is on the device of `x`."""
    if value.device != x.device:
        raise ValueError(
            f"{name} must be on device {x.device} to match {x_name}, got {value.device}"
        )


def check_columns(name: str, value: Tensor, columns: int, x_name: str = "x") -> None:
    """`value` has as many columns as `x`."""
    if value.shape[1] != columns:
        raise ValueError(
            f"{name} must have {columns} columns to match {x_name}, got {value.shape[1]}"
        )


def check_same_rows(name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    """`value` has as many rows as `x`."""
    if value.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} must have {x.shape[0]} rows to match {x_name}, got {value.shape[0]}"
        )


def check_features(
    x: Tensor, y: Tensor, x_name: str = "x", y_name: str = "y", may_be_empty: bool = False
) -> None:
    """Two matrices whose rows can be compared: same columns, dtype and device, none empty.

    Where other processes have rows, this one's `may_be_empty`.
    """
    for name, value in ((x_name, x), (y_name, y)):
        check_matrix(name, value)
        if not may_be_empty:
            check_rows(name, value)
    check_columns(y_name, y, x.shape[1], x_name)
    check_matches(y_name, y, x, x_name)


def check_pairs(x: Tensor, y: Tensor, may_be_empty: bool = False) -> None:
    """Two matrices whose rows belong together: same rows, dtype and device, widths of their own."""
    for name, value in (("x", x), ("y", y)):
        check_matrix(name, value)
        if not may_be_empty:
            check_rows(name, value)
    check_matches("y", y, x)
    check_same_rows("y", y, x)


def check_several_rows(name: str, value: Tensor) -> None:
    """`value` has at least two rows, without which nothing varies."""
    if value.shape[0] < 2:
        raise ValueError(f"{name} must have at least 2 rows, got {value.shape[0]}")


def check_modalities(features: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """At least two matrices by name, of the same columns, dtype and device."""
    if not isinstance(features, Mapping):
        raise TypeError(f"features must be a mapping of names, got {type(features).__name__}")
    if len(features) < 2:
        raise ValueError(f"features must have at least 2 modalities, got {len(features)}")
    first, *others = (f"features[{name!r}]" for name in features)
    x, *rest = operands.promoted(*features.values())
    check_matrix(first, x)
    for name, value in zip(others, rest, strict=True):
        check_matrix(name, value)
        check_columns(name, value, x.shape[1], first)
        check_matches(name, value, x, first)
    return dict(zip(features, (x, *rest), strict=True))


def check_equal_rows(features: Mapping[str, Tensor]) -> None:
    """Every modality has as many rows as the others."""
    rows = {name: value.shape[0] for name, value in features.items()}
    first = next(iter(rows.values()))
    # torch.compile would compile anew for every number in a set.
    if any(count != first for count in rows.values()):
        raise ValueError(f"features must have as many rows in every modality, got {rows}")


def check_modality(argument: str, name: str, features: Mapping[str, Tensor]) -> None:
    """`name` is one of the modalities."""
    if name not in features:
        names = ", ".join(repr(known) for known in features)
        raise ValueError(f"{argument} must name modalities of features ({names}), got {name!r}")


def check_parameter(name: str, value: Tensor | None, size: int, x: Tensor) -> Tensor | None:
    """An optional vector of `size` numbers on the device of `x`, in its dtype or in float32."""
    if value is None:
        return None
    check_tensor(name, value)
    value = operands.as_parameter(value, x)
    if value.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(value.shape)}")
    if value.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"{name} must have dtype {_short(x.dtype)} to match x, or float32, "
            f"got {_short(value.dtype)}"
        )
    check_device(name, value, x)
    return value


def check_weight(
    name: str, weight: Tensor | None, x: Tensor, may_be_zero: bool = False
) -> Tensor | None:
    """One number for each row of `x`, none below 0 and, unless that `may_be_zero`, not all 0.

    Where the host does not see the numbers, weights that are all 0 give NaN.
    """
    weight = check_parameter(name, weight, x.shape[0], x)
    if weight is None or not has_values(weight):
        return weight
    if not bool((weight >= 0).all()):
        raise ValueError(f"{name} must be at least 0, got {weight.min().item()}")
    if not may_be_zero and not bool((weight > 0).any()):
        raise ValueError(f"{name} must be above 0 for at least one row, got 0 for all")
    return weight


def as_scalar(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """`value`, a finite number or a one-element tensor, as a 0-D tensor on the device of `x`."""
    if isinstance(value, np.ndarray) and torch.compiler.is_compiling():
        value = torch.as_tensor(value, dtype=torch.float64, device=x.device)  # not to be looked at
    if isinstance(value, Tensor):
        if value.dtype in INTEGERS:
            value = value.double()
        check_tensor(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} must be a scalar, got shape {tuple(value.shape)}")
        check_device(name, value, x)
        return value if value.ndim == 0 else value.reshape(())
    number = as_number(name, value, "a number or a tensor")
    if not -math.inf < number < math.inf:  # torch.compile cannot trace math.isfinite
        raise ValueError(f"{name} must be finite, got {number}")
    return torch.full((), number, dtype=torch.float64, device=x.device)


def check_scale(name: str, value: float | Tensor) -> None:
    """`value`, an inverse temperature, is not below 0.

    Where the host does not see a tensor's number, one below 0 turns positives and negatives around.
    """
    number: object = value
    if isinstance(value, Tensor):
        if value.numel() != 1 or not has_values(value):
            return
        number = value.item()
    if isinstance(number, (int, float, Real)) and number < 0:
        raise ValueError(f"{name}, the inverse temperature, must be at least 0, got {number}")


def check_indices(name: str, value: object, size: int, of: str, x: Tensor) -> Tensor:
    """`value`, an integer for each row of `of`, on the device of `x`; int64."""
    value = as_integers(name, value)
    if value.shape != (size,):
        raise ValueError(
            f"{name} must have shape ({size},) to match the rows of {of}, got {tuple(value.shape)}"
        )
    check_device(name, value, x)
    return value


def as_integers(name: str, value: object) -> Tensor:
    """`value`, a tensor of integers, as int64."""
    check_is_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype not in INTEGERS:
        raise TypeError(
            f"{name} must be of an integer dtype up to int64, got {_short(value.dtype)}"
        )
    return value.long()


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
