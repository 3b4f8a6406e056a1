"""Dtypes of the operands of a product.

Sums of products are float32 for every 16- and 32-bit input, however the operands are rounded.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.tracing import constant_when_compiled


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype in which autocast wants `x` multiplied; None where it leaves `x` alone."""
    device = x.device.type
    if x.dtype == torch.float32 and torch.is_autocast_enabled(device):
        return torch.get_autocast_dtype(device)
    return None


def as_multiplied(x: Tensor) -> Tensor:
    """In autocast's dtype, where it applies."""
    dtype = autocast_dtype(x)
    return x if dtype is None else x.to(dtype)


def multiplies_bfloat16(x: Tensor) -> bool:
    """bfloat16 numbers are; float32 ones where torch's float32 precision is "medium"."""
    return x.dtype == torch.bfloat16 or (x.dtype == torch.float32 and _is_precision_medium())


@constant_when_compiled
def _is_precision_medium() -> bool:
    # torch.compile cannot trace the question: compiled code keeps the answer it was compiled with.
    try:
        return torch.get_float32_matmul_precision() == "medium"
    except RuntimeError:  # set by torch's newer switches, of which none means "medium"
        return False


def with_operands(inputs: SimilarityInputs) -> SimilarityInputs:
    """The matrix with its features as they are multiplied."""
    x = as_multiplied(inputs.x)
    of_bfloat16 = multiplies_bfloat16(x)
    if x is inputs.x and not of_bfloat16:
        return inputs  # y has the dtype of x
    y = None if inputs.y is None else as_multiplied(inputs.y)
    return inputs._replace(x=x, y=y, multiplies_bfloat16=of_bfloat16)
