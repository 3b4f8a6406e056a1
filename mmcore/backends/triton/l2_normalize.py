"""L2 normalisation of rows.

    y = z / norm,  z = x + bias,  norm = max(‖z‖, eps),  inverse_norm = 1 / norm
    grad_z = (grad_y − y · along) · inverse_norm,  along = ⟨y, grad_y⟩ where ‖z‖ > eps, else 0

The bias, one number a column, is that of a projection; without one z is x.

Never stored: z, nor anything of the size of x besides the result.
Loop order: a program takes ROWS rows and walks their columns twice, the second time from cache.
Precision: any dtype in and out. Sums are float32; each result is rounded once.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.families import Normalized
from mmcore.backends.triton.launch import row_tile, unit_stride, whole
from mmcore.backends.triton.launch_plan import planned


@triton.jit
def biased_row(x, bias, at_row, k, inside, columns, HAS_BIAS: tl.constexpr):  # fmt: skip
    """Numbers of z, float32; 0 outside."""
    value = tl.load(x + at_row + k, mask=inside, other=0).to(tl.float32)
    if HAS_BIAS:
        value += tl.load(bias + k, mask=k < columns, other=0).to(tl.float32)
    return value


@planned
@triton.jit
def l2_normalize_forward_kernel(
    x, bias, y, inverse_norm, rows, columns, x_stride, eps,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    from_row = row.to(tl.int64)[:, None]
    square = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = biased_row(x, bias, from_row * x_stride, k, inside, columns, HAS_BIAS)
        square += tl.sum(value * value, 1)
    norm = tl.sqrt_rn(square)
    norm = tl.where(norm < eps, eps, norm)  # NaN stays NaN
    tl.store(inverse_norm + row, tl.div_rn(1.0, norm), mask=row < rows)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = biased_row(x, bias, from_row * x_stride, k, inside, columns, HAS_BIAS)
        tl.store(y + from_row * columns + k, tl.div_rn(value, norm[:, None]), mask=inside)


@planned
@triton.jit
def l2_normalize_backward_kernel(
    y, inverse_norm, grad_y, grad_z, along_norm, rows, columns, y_stride, grad_y_stride, eps,
    STORES_ALONG: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
    if STORES_ALONG:
        tl.store(along_norm + row, along, mask=row < rows)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        value = tl.load(y + from_row * y_stride + k, mask=inside, other=0).to(tl.float32)
        grad = tl.load(grad_y + from_row * grad_y_stride + k, mask=inside, other=0).to(tl.float32)
        tangent = (grad - value * along[:, None]) * inverse[:, None]
        tl.store(grad_z + from_row * columns + k, tangent, mask=inside)


def forward(x: Tensor, eps: float) -> Normalized:
    """The normalised rows, and the inverse of their norms."""
    return normalize_rows(x, None, eps, x.dtype)


def normalize_rows(x: Tensor, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Normalized:
    """The rows of x + bias normalised, in `dtype`, and the inverse of their norms."""
    x = unit_stride(x)
    rows, columns = x.shape
    y = x.new_empty(rows, columns, dtype=dtype)
    inverse_norm = x.new_empty(rows, dtype=torch.float32)
    tile = row_tile(columns)
    if rows:
        l2_normalize_forward_kernel[(whole(rows, tile.ROWS),)](
            x, x if bias is None else bias.contiguous(), y, inverse_norm, rows, columns,
            x.stride(0), eps, bias is not None, *tile,
        )  # fmt: skip
    return Normalized(y, inverse_norm)


def backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    """The gradient of x, in the dtype of y."""
    return normalize_rows_backward(Normalized(y, inverse_norm), grad_y, None, eps, y.dtype)


def normalize_rows_backward(
    normalized: Normalized, grad_y: Tensor, along: Tensor | None, eps: float, dtype: torch.dtype
) -> Tensor:
    """The gradient of x + bias, in `dtype`; fills `along`, (N,), where it is given."""
    y, grad_y, inverse_norm = unit_stride(normalized.y), unit_stride(grad_y), normalized[1]
    rows, columns = y.shape
    grad_z = y.new_empty(rows, columns, dtype=dtype)
    tile = row_tile(columns)
    if rows:
        l2_normalize_backward_kernel[(whole(rows, tile.ROWS),)](
            y, inverse_norm, grad_y, grad_z, inverse_norm if along is None else along, rows,
            columns, y.stride(0), grad_y.stride(0), eps, along is not None, *tile,
        )  # fmt: skip
    return grad_z
