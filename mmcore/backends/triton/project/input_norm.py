"""LayerNorm and RMSNorm of rows, the first step of a projection.

    n = (x − mean) · inverse_std,   x̂ = n · weight + bias        RMS: mean = 0
    grad_x = inverse_std · (g − mean(g) − n · mean(g · n)),  g = grad_x̂ · weight

RMS: grad_x is without mean(g). The gradients of weight and bias: parameter_sums.py.

Never stored: n, which the backward computes again.
Loop order: a program takes ROWS rows and walks their columns. Forward: the mean, a correction of
it, the variance, then x̂; for the backward, x̂ alone. Backward: mean(g) and mean(g · n), then grad_x.
Precision: float32. The correction adds what the mean lost to rounding. The variance is the mean
square of the deviations, because E[x²] − E[x]² cancels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned


class NormedRows(NamedTuple):
    """What the backward reads of the norm."""

    x: Any  # (N, K)
    mean: Any  # (N,) float32, for layer norm
    inverse_std: Any  # (N,) float32
    weight: Any  # (K,)
    stride: Any  # of the rows of x


@triton.jit
def row_statistics(
    x, mean, inverse_std, row, rows, columns, x_stride, eps,
    IS_LAYER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """The mean and inverse_std of rows, which are stored too."""
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
    return centre, inverse


@planned
@triton.jit
def input_norm_forward_kernel(
    x, weight, bias, out, mean, inverse_std, rows, columns, x_stride, eps,
    HAS_STATISTICS: tl.constexpr, IS_LAYER: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    HAS_BIAS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """With `HAS_STATISTICS`, for the backward, mean and inverse_std are read and not computed."""
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row, in_rows = row.to(tl.int64)[:, None], row < rows
    if HAS_STATISTICS:
        centre = tl.zeros([ROWS], tl.float32)
        if IS_LAYER:
            centre = tl.load(mean + row, mask=in_rows, other=0)
        inverse = tl.load(inverse_std + row, mask=in_rows, other=0)
    else:
        centre, inverse = row_statistics(
            x, mean, inverse_std, row, rows, columns, x_stride, eps, IS_LAYER, ROWS, COLUMNS
        )
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = in_rows[:, None] & (k < columns)
        value = tl.load(x + at_row * x_stride + k, mask=inside, other=0).to(tl.float32)
        value = (value - centre[:, None]) * inverse[:, None]
        if HAS_WEIGHT:
            value = value * tl.load(weight + k, mask=k < columns, other=0).to(tl.float32)
        if HAS_BIAS:
            value = value + tl.load(bias + k, mask=k < columns, other=0).to(tl.float32)
        tl.store(out + at_row * columns + k, value, mask=inside)


@triton.jit
def input_norm_backward(
    norm, grad, grad_x, program, rows, columns, IS_LAYER: tl.constexpr, HAS_WEIGHT: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """One program's rows of grad_x; `grad` is the gradient of x̂, float32."""
    row = program * ROWS + tl.arange(0, ROWS)
    at_row, in_rows = row.to(tl.int64)[:, None], row < rows
    inverse = tl.load(norm.inverse_std + row, mask=in_rows, other=0)[:, None]
    centre = tl.zeros([ROWS, 1], tl.float32)
    if IS_LAYER:
        centre = tl.load(norm.mean + row, mask=in_rows, other=0)[:, None]
    total, along = tl.zeros([ROWS], tl.float32), tl.zeros([ROWS], tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = in_rows[:, None] & (k < columns)
        g = tl.load(grad + at_row * columns + k, mask=inside, other=0)
        value = tl.load(norm.x + at_row * norm.stride + k, mask=inside, other=0).to(tl.float32)
        n = tl.where(inside, (value - centre) * inverse, 0.0)
        if HAS_WEIGHT:
            g = g * tl.load(norm.weight + k, mask=k < columns, other=0).to(tl.float32)
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
        value = tl.load(norm.x + at_row * norm.stride + k, mask=inside, other=0).to(tl.float32)
        n = (value - centre) * inverse
        if HAS_WEIGHT:
            g = g * tl.load(norm.weight + k, mask=k < columns, other=0).to(tl.float32)
        tl.store(grad_x + at_row * columns + k, (g - average - n * along_n) * inverse, mask=inside)
