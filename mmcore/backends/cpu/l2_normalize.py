"""Launches the kernels of l2_normalize.

Rows are read and written in their own dtype, norms and sums are float32, and every result is
rounded once, to the input's dtype.
"""

from __future__ import annotations

from torch import Tensor

from mmcore import _C
from mmcore.backends.cpu.arrays import new, rows, threads, vector
from mmcore.backends.families import Normalized


def forward(x: Tensor, eps: float) -> Normalized:
    found = Normalized(new(x.shape, x.dtype), new(x.shape[:1]))
    _C.l2_normalize_forward(rows(x), eps, rows(found.y), vector(found.inverse_norm), threads())
    return found


def backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    grad_x = new(y.shape, y.dtype)
    _C.l2_normalize_backward(
        rows(y), vector(inverse_norm), rows(grad_y), eps, rows(grad_x), threads()
    )
    return grad_x
