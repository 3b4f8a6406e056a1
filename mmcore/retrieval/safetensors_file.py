"""Files of safetensors, read without a copy: the format alone, so that no package is needed.

    size of the header, 8 bytes · the header as JSON · the numbers of all tensors, without gaps

The header names for each tensor its dtype, shape and place, counted from the end of the header.
https://huggingface.co/docs/safetensors has the format.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mmcore.retrieval.arrays import as_tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8,
}  # fmt: skip
NAMES = {dtype: name for name, dtype in DTYPES.items()}
METADATA = "__metadata__"
LARGEST_HEADER = 100_000_000
ALIGNMENT = 64


class File(NamedTuple):
    """What a file holds; tensors of dtypes that are not in DTYPES are left out."""

    tensors: dict[str, Tensor]  # views of the mapped file, not to be written to
    metadata: dict[str, str]


def read(path: str | os.PathLike[str]) -> File:
    """The file's tensors, of which nothing is read before it is used."""
    size = Path(path).stat().st_size
    with Path(path).open("rb") as file:
        header_size = int.from_bytes(file.read(8), "little")
        if size < 8 or header_size > min(size - 8, LARGEST_HEADER):
            raise ValueError(
                f"{path} is no file of safetensors, or is cut short: its first 8 bytes say that "
                f"the header has {header_size} bytes, and the file has {size}"
            )
        header = _parsed(path, file.read(header_size))
    metadata = header.pop(METADATA, {})
    data = np.zeros(0, np.uint8)
    if size > 8 + header_size:
        data = np.memmap(path, np.uint8, "r", offset=0)[8 + header_size :]
    tensors = {
        name: _tensor(path, name, entry, data)
        for name, entry in header.items()
        if entry.get("dtype") in DTYPES
    }
    return File(tensors, metadata)


def write(
    path: str | os.PathLike[str], tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> None:
    """Writes beside the path first, so that an interrupted call leaves no half of a file there."""
    header: dict[str, Any] = {METADATA: dict(metadata)}
    begin = 0
    for name, tensor in tensors.items():
        end = begin + tensor.numel() * tensor.element_size()
        shape = list(tensor.shape)
        header[name] = {"dtype": NAMES[tensor.dtype], "shape": shape, "data_offsets": [begin, end]}
        begin = end
    spelled = json.dumps(header).encode()
    spelled += b" " * (-(8 + len(spelled)) % ALIGNMENT)
    beside = Path(f"{os.fspath(path)}.{os.getpid()}.part")
    try:
        with beside.open("wb") as file:
            file.write(len(spelled).to_bytes(8, "little"))
            file.write(spelled)
            for tensor in tensors.values():
                for piece in bytes_of(tensor):
                    file.write(piece)
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def bytes_of(tensor: Tensor) -> list[memoryview]:
    """A piece for each group of rows: a tensor without its own memory is not copied as a whole."""
    pieces = tensor.split(65536) if tensor.numel() else ()
    return [memoryview(piece.cpu().contiguous().view(torch.uint8).numpy()) for piece in pieces]


def _parsed(path: str | os.PathLike[str], spelled: bytes) -> dict[str, Any]:
    try:
        header: dict[str, Any] = json.loads(spelled)
    except ValueError as error:
        raise ValueError(f"{path} is no file of safetensors: its header is no JSON") from error
    is_header = isinstance(header, dict) and all(isinstance(it, dict) for it in header.values())
    if not is_header:
        raise ValueError(f"{path} is no file of safetensors: its header names no tensors")
    return header


def _tensor(
    path: str | os.PathLike[str], name: str, entry: Mapping[str, Any], data: NDArray[np.uint8]
) -> Tensor:
    dtype = DTYPES[entry["dtype"]]
    try:
        shape = [int(size) for size in entry["shape"]]
        begin, end = (int(place) for place in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged: its header has no place of {name!r}") from error
    if min([0, begin, *shape]) < 0 or end - begin != prod(shape) * dtype.itemsize:
        raise ValueError(
            f"{path} is damaged: its header gives {name!r} the shape {tuple(shape)} of "
            f"{entry['dtype']} in {end - begin} bytes"
        )
    if end > len(data):
        raise ValueError(
            f"{path} is cut short: {name!r} ends at byte {end} of {len(data)} behind the header"
        )
    numbers = data[begin:end]
    if numbers.ctypes.data % dtype.itemsize:  # where another program wrote without alignment
        numbers = numbers.copy()
    return as_tensor(name, numbers).view(dtype).view(shape)
