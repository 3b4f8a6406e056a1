"""Features of files: .npy and .safetensors are memory-mapped, .parquet is read by chunks."""

from __future__ import annotations

import os
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from mmcore.retrieval import safetensors_file, tables

Path_ = str | os.PathLike[str]
ENDINGS = ".npy, .safetensors or .parquet"
MAGIC = b"\x93NUMPY"


def opened(path: Path_, column: str | None = None) -> Any:
    """An array, of which nothing is read before it is used, or chunks that can be iterated."""
    ending = Path(path).suffix.lower()
    if ending == ".npy":
        if column is not None:
            raise ValueError(f"column must be None for a .npy file, got {column!r}")
        return _mapped(path)
    if ending == ".safetensors":
        return _of_safetensors(path, column)
    if ending == ".parquet":
        return tables.of_parquet(path, column)
    raise ValueError(f"a file of features must end in {ENDINGS}, got {os.fspath(path)!r}")


def _mapped(path: Path_) -> Any:
    """The array of a .npy file."""
    with Path(path).open("rb") as file:
        if file.read(len(MAGIC)) != MAGIC:
            raise ValueError(f"{path} is no .npy file: it begins with other bytes")
    try:
        return np.load(path, mmap_mode="r", allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(f"{path} {_fault(path)}") from error


def _fault(path: Path_) -> str:
    """What is wrong with a .npy file that cannot be mapped."""
    size = Path(path).stat().st_size
    try:
        with Path(path).open("rb") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0
            if version > (1, 0):
                read = np.lib.format.read_array_header_2_0
            shape, _, dtype = read(file)
            wanted = file.tell() + prod(shape) * dtype.itemsize
    except (ValueError, EOFError):
        return f"is cut short or damaged: the header of {size} bytes cannot be read"
    if dtype.hasobject:
        return "has Python objects, which are not loaded"
    return f"is cut short: shape {shape} of {dtype} takes {wanted} bytes, the file has {size}"


def _of_safetensors(path: Path_, name: str | None) -> Tensor:
    tensors = safetensors_file.read(path).tensors
    matrices = {key: value for key, value in tensors.items() if value.ndim == 2}
    if name is None:
        floating = [key for key, value in matrices.items() if value.dtype.is_floating_point]
        if len(floating) != 1:
            raise ValueError(
                f"{path} must have one matrix of floating-point numbers, got {sorted(floating)}: "
                f"choose one by mmcore.retrieval.open_features({os.fspath(path)!r}, column=…)"
            )
        return matrices[floating[0]]
    if name not in matrices:
        raise ValueError(
            f"column must be a matrix of {path}, {_listed(sorted(matrices))}, got {name!r}"
        )
    return matrices[name]


def _listed(names: list[str]) -> str:
    return "one of " + ", ".join(repr(name) for name in names) if names else "which has none"
