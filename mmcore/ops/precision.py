"""Dtypes of the operands of a product, and how exact the product has to be.

Sums of products are float32 for every 16- and 32-bit input, however the operands are rounded. The
precisions are named as by `torch.set_float32_matmul_precision`:

    "highest"   as exact as products of float32 numbers
    "high"      a backend may split float32 operands in two bfloat16 numbers each, x ≈ x₁ + x₂, and
                sum three products, x₁·y₁ + x₁·y₂ + x₂·y₁; on a GPU it may use TensorFloat-32
    "medium"    operands may be rounded to bfloat16, as bfloat16 features are

A backend that has no product for one computes as for the more exact one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.tracing import constant_when_compiled

PRECISIONS = ("highest", "high", "medium")  # the most exact first


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast wants `x` multiplied; None where it leaves `x` alone."""
    return current_autocast(x) if x.dtype == torch.float32 else None


def current_autocast(x: Tensor) -> torch.dtype | None:
    """The dtype of the autocast that is on for the device of `x`; None where none is."""
    device = x.device.type
    if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def as_multiplied(x: Tensor) -> Tensor:
    """In autocast's dtype, where it applies."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def precision_of(x: Tensor) -> str:
    """That of products of `x`: "medium" for bfloat16, torch's setting for float32, or "highest"."""
    if x.dtype == torch.bfloat16:
        return "medium"
    return _float32_precision() if x.dtype == torch.float32 else "highest"


def common_precision(x: Tensor, y: Tensor) -> str:
    """The more exact of both."""
    first, second = precision_of(x), precision_of(y)
    return first if PRECISIONS.index(first) < PRECISIONS.index(second) else second


@constant_when_compiled
def _float32_precision() -> str:
    # torch.compile cannot trace the question: compiled code keeps the answer it was compiled with.
    try:
        return torch.get_float32_matmul_precision()
    except RuntimeError:  # set by torch's newer switches, which have no word for these precisions
        return "highest"


def with_operands(inputs: SimilarityInputs) -> SimilarityInputs:
    """The matrix with its features as they are multiplied."""
    x = as_multiplied(inputs.x)
    precision = precision_of(x)
    if x is inputs.x and precision == inputs.precision:
        return inputs  # y has the dtype of x
    y = None if inputs.y is None else as_multiplied(inputs.y)
    return inputs._replace(x=x, y=y, precision=precision)
