"""Gradients of a sigmoid objective from those that its forward cached for a = 1 and c = −1.

    grad_x_i = a·kept_i + (a + c)·scale·y_target(i)
    grad_y_j = a·kept_j + (a + c)·scale·Σ_{i: target(i) = j} x_i
    grad_scale = a·kept + (a + c)·Σ_i ⟨x_i, y_target(i)⟩        grad_bias = a·kept + Σ_i (a + c)

a and c are the upstream gradients of total and positive. In every loss a + c is 0, but only the
device knows. The kernel reads x and y only if it is not.

Never stored: the logits and G, which this kernel does not compute.
Loop order: a program takes ROWS rows of x and as many of y, and walks their columns. For a column
that several rows name, it reads all targets.
Precision: float32; the gradients of scale and bias are float64 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.norms_and_targets import COLUMNS_BEGIN

# A number of five matrices for each of a program's: four warps would not hold them.
NUM_WARPS = 8


@triton.jit
def load_features(features, row, in_rows, stride, k, in_depth):
    at = features + row.to(tl.int64)[:, None] * stride + k
    return tl.load(at, mask=in_rows[:, None] & in_depth, other=0).to(tl.float32)


@triton.jit
def rows_naming(x, target, tally, j, rows, columns, x_stride, k, in_depth, ROWS: tl.constexpr):
    """Σ x_i over the rows i that name each of the columns j."""
    named = tl.load(tally + COLUMNS_BEGIN + j, mask=j < columns, other=0)
    count = named >> 32
    result = load_features(x, named & 4294967295, count == 1, x_stride, k, in_depth)
    if tl.max(count, 0) > 1:
        for i in range(0, rows):
            is_named = (count > 1) & (tl.load(target + i) == j)
            of_row = load_features(x, j * 0 + i, is_named, x_stride, k, in_depth)
            result += of_row
    return result


@triton.jit
def from_kept_kernel(
    x, y, target, tally, kept_x, kept_y, kept_sums, grad_total, grad_positive, scale, grad_x,
    grad_y, parts, rows, columns, depth, x_stride, y_stride, HAS_Y: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    of_row, in_rows, in_columns = i.to(tl.int64)[:, None] * depth, i < rows, i < columns
    of_total = tl.load(grad_total)
    weight = of_total + tl.load(grad_positive)
    by = of_total.to(tl.float32)
    factor = (weight * tl.load(scale).to(tl.float64)).to(tl.float32)
    has_weight = weight != 0
    j = tl.load(target + i, mask=in_rows, other=-1)
    names = (j >= 0) & (j < columns)
    products = tl.zeros([ROWS], tl.float64)
    for start in range(0, depth, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        in_depth = k < depth
        of_x = tl.load(kept_x + of_row + k, mask=in_rows[:, None] & in_depth, other=0) * by
        of_y = of_x
        if HAS_Y:
            of_y = tl.load(kept_y + of_row + k, mask=in_columns[:, None] & in_depth, other=0) * by
        if has_weight:
            left = load_features(x, i, in_rows, x_stride, k, in_depth)
            right = load_features(y, j, names, y_stride, k, in_depth)
            products += tl.sum(left.to(tl.float64) * right.to(tl.float64), 1)
            of_x += factor * right
            naming = rows_naming(x, target, tally, i, rows, columns, x_stride, k, in_depth, ROWS)
            if HAS_Y:
                of_y += factor * naming
            else:
                of_x += factor * naming
        tl.store(grad_x + of_row + k, of_x, mask=in_rows[:, None] & in_depth)
        if HAS_Y:
            tl.store(grad_y + of_row + k, of_y, mask=in_columns[:, None] & in_depth)
    of_scale = weight * tl.sum(products, 0)
    of_bias = weight * tl.sum(names.to(tl.float64), 0)
    if tl.program_id(0) == 0:
        of_scale += of_total * tl.load(kept_sums)
        of_bias += of_total * tl.load(kept_sums + 1)
    tl.store(parts + tl.program_id(0), of_scale)
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), of_bias)
