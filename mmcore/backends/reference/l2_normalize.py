"""l2_normalize in plain torch; the formulas: ops/l2_normalize.py."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.families import Normalized
from mmcore.backends.inputs import arithmetic_dtype


def forward(x: Tensor, eps: float) -> Normalized:
    wide = x.to(arithmetic_dtype(x.dtype))
    norm = wide.norm(dim=1).clamp_min(eps)
    return Normalized((wide / norm[:, None]).to(x.dtype).contiguous(), norm.reciprocal())


def backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    wide, grad = y.to(inverse_norm.dtype), grad_y.to(inverse_norm.dtype)
    # A clamped norm does not depend on x, so the projection term vanishes.
    is_clamped = inverse_norm >= torch.full_like(inverse_norm, eps).reciprocal()
    along = torch.where(is_clamped, 0, (wide * grad).sum(1))
    grad_x = (grad - wide * along[:, None]) * inverse_norm[:, None]
    return grad_x.to(y.dtype).contiguous()
