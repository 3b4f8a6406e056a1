"""LayerNorm and RMSNorm of rows, the first step of a projection.

    n = (x − mean) · inverse_std,   x̂ = n · weight + bias        RMS: mean = 0
    grad_x = inverse_std · (g − mean(g) − n · mean(g · n)),  g = grad_x̂ · weight
    grad_weight = Σ grad_x̂ · n,   grad_bias = Σ grad_x̂        over the rows

RMS: grad_x is without mean(g).

Never stored: n, which the backward computes again.
Loop order: a program takes ROWS rows and walks their columns. Forward: the mean, a correction of
it, the variance, then x̂. Backward: mean(g) and mean(g · n), then grad_x. For weight and bias a
program takes some columns and walks a slab of rows; the sums of the slabs, (slabs, K), are added up
afterwards in one order.
Precision: float32; sums over the blocks of a slab are float64. The correction adds what the mean
lost to rounding. The variance is the mean square of the deviations, because E[x²] − E[x]² cancels.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned


@planned
@triton.jit
def input_norm_forward_kernel(
    x, weight, bias, out, mean, inverse_std, rows, columns, x_stride, eps,
    IS_LAYER: tl.constexpr, HAS_WEIGHT: tl.constexpr, HAS_BIAS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row, in_rows = row.to(tl.int64)[:, None], row < rows
    centre = tl.zeros([ROWS], tl.float32)
    if IS_LAYER:
        for start in range(0, columns, COLUMNS):
            k = start + tl.arange(0, COLUMNS)[None, :]
            inside = in_rows[:, None] & (k < columns)
            value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
            centre += tl.sum(value, 1)
        centre = tl.div_rn(centre, tl.cast(columns, tl.float32))
        rest = tl.zeros([ROWS], tl.float32)
        for start in range(0, columns, COLUMNS):
            k = start + tl.arange(0, COLUMNS)[None, :]
            inside = in_rows[:, None] & (k < columns)
            value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
            rest += tl.sum(tl.where(inside, value - centre[:, None], 0.0), 1)
        # Without the correction every deviation would lack what the mean lost to rounding.
        centre += tl.div_rn(rest, tl.cast(columns, tl.float32))
        tl.store(mean + row, centre, mask=in_rows)
    square = tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = in_rows[:, None] & (k < columns)
        value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        deviation = tl.where(inside, value - centre[:, None], 0.0)
        square += tl.sum(deviation * deviation, 1)
    inverse = tl.div_rn(1.0, tl.sqrt_rn(tl.div_rn(square, tl.cast(columns, tl.float32)) + eps))
    tl.store(inverse_std + row, inverse, mask=in_rows)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = in_rows[:, None] & (k < columns)
        value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        value = (value - centre[:, None]) * inverse[:, None]
        if HAS_WEIGHT:
            value = value * tl.load(weight + k, mask=k < columns, other=0)
        if HAS_BIAS:
            value = value + tl.load(bias + k, mask=k < columns, other=0)
        tl.store(out + at_row * columns + k, value, mask=inside)


@planned
@triton.jit
def input_norm_backward_kernel(
    x, weight, mean, inverse_std, grad, grad_x, rows, columns, x_stride,
    IS_LAYER: tl.constexpr, HAS_WEIGHT: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`grad` is the gradient of x̂, float32."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row, in_rows = row.to(tl.int64)[:, None], row < rows
    inverse = tl.load(inverse_std + row, mask=in_rows, other=0)[:, None]
    centre = tl.zeros([ROWS, 1], tl.float32)
    if IS_LAYER:
        centre = tl.load(mean + row, mask=in_rows, other=0)[:, None]
    total, along = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = in_rows[:, None] & (k < columns)
        g = tl.load(grad + at_row * columns + k, mask=inside, other=0)
        value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        n = tl.where(inside, (value - centre) * inverse, 0.0)
        if HAS_WEIGHT:
            g = g * tl.load(weight + k, mask=k < columns, other=0)
        total += tl.sum(g, 1)
        along += tl.sum(g * n, 1)
    size = tl.cast(columns, tl.float32)
    average = tl.zeros([ROWS, 1], tl.float32)
    if IS_LAYER:
        average = tl.div_rn(total, size)[:, None]
    along_n = tl.div_rn(along, size)[:, None]
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = in_rows[:, None] & (k < columns)
        g = tl.load(grad + at_row * columns + k, mask=inside, other=0)
        value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        n = (value - centre) * inverse
        if HAS_WEIGHT:
            g = g * tl.load(weight + k, mask=k < columns, other=0)
        tl.store(grad_x + at_row * columns + k, (g - average - n * along_n) * inverse, mask=inside)


@planned
@triton.jit
def input_norm_sums_kernel(
    x, mean, inverse_std, grad, weight_part, bias_part, rows, columns, x_stride, slab_rows,
    IS_LAYER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Gradients of norm_weight and norm_bias from a slab of rows, float64 over its blocks."""
    slab = tl.program_id(1)
    k = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    grad_weight, grad_bias = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
    end = tl.minimum((slab + 1) * slab_rows, rows)
    for start in range(slab * slab_rows, end, ROWS):
        row = start + tl.arange(0, ROWS)
        at_row, in_rows = row.to(tl.int64)[:, None], row < end
        inside = in_rows[:, None] & (k < columns)[None, :]
        g = tl.load(grad + at_row * columns + k[None, :], mask=inside, other=0)
        n = tl.load(x + at_row * x_stride + k[None, :], mask=inside, other=0).to(tl.float32)
        if IS_LAYER:
            n = n - tl.load(mean + row, mask=in_rows, other=0)[:, None]
        n = n * tl.load(inverse_std + row, mask=in_rows, other=0)[:, None]
        grad_weight += tl.sum(g * n, 0).to(tl.float64)
        grad_bias += tl.sum(g, 0).to(tl.float64)
    at = slab.to(tl.int64) * columns + k
    tl.store(weight_part + at, grad_weight, mask=k < columns)
    tl.store(bias_part + at, grad_bias, mask=k < columns)
