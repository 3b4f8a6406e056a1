"""L2 normalisation of rows.

    y = x / norm,  norm = max(‖x‖, eps),  inverse_norm = 1 / norm
    grad_x = (grad_y − y ⟨y, grad_y⟩) · inverse_norm   where ‖x‖ > eps, else grad_y / eps

Never stored: anything of the size of x besides the result.
Loop order: a program takes ROWS rows and walks their columns twice, the second time from cache.
Precision: any dtype in and out. Sums are float32; each result is rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.families import Normalized
from mmcore.backends.triton.launch import row_tile, unit_stride
from mmcore.backends.triton.launch_plan import planned


@planned
@triton.jit
def l2_normalize_forward_kernel(
    x, y, inverse_norm, rows, columns, x_stride, y_stride, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    from_row = row.to(tl.int64)[:, None]
    square = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = tl.load(x + from_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        square += tl.sum(value * value, 1)
    norm = tl.sqrt_rn(square)
    norm = tl.where(norm < eps, eps, norm)  # NaN stays NaN
    tl.store(inverse_norm + row, tl.div_rn(1.0, norm), mask=row < rows)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = tl.load(x + from_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        tl.store(y + from_row * y_stride + k, tl.div_rn(value, norm[:, None]), mask=inside)


@planned
@triton.jit
def l2_normalize_backward_kernel(
    y, inverse_norm, grad_y, grad_x, rows, columns, y_stride, grad_y_stride, grad_x_stride, eps,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    from_row = row.to(tl.int64)[:, None]
    along = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = tl.load(y + from_row * y_stride + k, mask=inside, other=0).to(tl.float32)
        grad = tl.load(grad_y + from_row * grad_y_stride + k, mask=inside, other=0).to(tl.float32)
        along += tl.sum(value * grad, 1)
    inverse = tl.load(inverse_norm + row, mask=row < rows, other=1)
    # A clamped norm does not depend on x, so the projection term vanishes.
    along = tl.where(inverse >= tl.div_rn(1.0, eps), 0.0, along)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = tl.load(y + from_row * y_stride + k, mask=inside, other=0).to(tl.float32)
        grad = tl.load(grad_y + from_row * grad_y_stride + k, mask=inside, other=0).to(tl.float32)
        tangent = (grad - value * along[:, None]) * inverse[:, None]
        tl.store(grad_x + from_row * grad_x_stride + k, tangent, mask=inside)


def forward(x: Tensor, eps: float) -> Normalized:
    """The normalised rows, and the inverse of their norms."""
    x = unit_stride(x)
    rows, columns = x.shape
    y = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    inverse_norm = torch.empty(rows, dtype=torch.float32, device=x.device)
    tile = row_tile(columns)
    if rows:
        l2_normalize_forward_kernel[(triton.cdiv(rows, tile.ROWS),)](
            x, y, inverse_norm, rows, columns, x.stride(0), y.stride(0), eps, *tile
        )
    return Normalized(y, inverse_norm)


def backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    """The gradient of x, in the dtype of y."""
    y, grad_y = unit_stride(y), unit_stride(grad_y)
    rows, columns = y.shape
    grad_x = torch.empty(y.shape, dtype=y.dtype, device=y.device)
    tile = row_tile(columns)
    if rows:
        l2_normalize_backward_kernel[(triton.cdiv(rows, tile.ROWS),)](
            y, inverse_norm, grad_y, grad_x, rows, columns, y.stride(0), grad_y.stride(0),
            grad_x.stride(0), eps, *tile,
        )  # fmt: skip
    return grad_x
