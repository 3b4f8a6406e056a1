"""Tensors as what the compiled module takes: DLPack capsules, which share their memory.

The module borrows a capsule during a call. `Tensor.numpy()` would cost more, and would mark the
storage as one that can never be resized. The ops run below autograd, so a tensor that requires a
gradient is exported as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils.dlpack import to_dlpack  # type: ignore[attr-defined]

# A DLPack capsule: Python's types have no name for it.
Array: TypeAlias = object

# Dtype and device are always named: torch has settings for what is not.


def new(shape: int | Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a result of the kernels."""
    return torch.empty(shape, dtype=dtype, device="cpu")


def zeros(shape: int | Sequence[int]) -> Tensor:
    """Memory for sums, float32."""
    return torch.zeros(shape, dtype=torch.float32, device="cpu")


def double(value: float) -> Tensor:
    """A number as float64, 0-D."""
    return torch.scalar_tensor(value, dtype=torch.float64, device="cpu")


def rows(tensor: Tensor) -> Array:
    """A matrix in its own dtype with unit column stride."""
    if tensor.is_contiguous() or tensor.stride(-1) == 1:
        return to_dlpack(tensor)
    return to_dlpack(tensor.contiguous())


def rows_or_none(tensor: Tensor | None) -> Array | None:
    """As `rows`; None stays None."""
    return None if tensor is None else rows(tensor)


def vector(tensor: Tensor, dtype: torch.dtype | None = None) -> Array:
    """A dense vector, of its own dtype or of `dtype`."""
    if dtype is not None and tensor.dtype is not dtype:
        tensor = tensor.to(dtype)
    return to_dlpack(tensor.contiguous())


def vector_or_none(tensor: Tensor | None, dtype: torch.dtype | None = None) -> Array | None:
    """As `vector`; None stays None."""
    return None if tensor is None else vector(tensor, dtype)


def number(scalar: Tensor | None) -> float:
    """A 0-D tensor's value; 0 for None."""
    return 0.0 if scalar is None else float(scalar)


def threads() -> int:
    """How many threads a kernel takes: torch's."""
    return torch.get_num_threads()
