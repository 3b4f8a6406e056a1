"""The largest norms of both sides, and the logits that targets name: O((N + M)·D).

    norm_x = max_i ‖x_i‖²        norm_y = max_j ‖y_j‖²
    logit_i = scale·⟨x_i, y_target(i)⟩ + biases
    tally_j = Σ_{i: target(i) = j} (2³² + i)

The upper half of a tally counts the rows that name the column. Where it is 1, the lower half is the
number of that row, and no program has to search all targets for it. A target of −1 names nothing.
For a target outside the matrix nothing is read, and its logit is NaN.

Never stored: an N×M mask of the positives.
Loop order: a program takes ROWS rows of x and as many of y, and walks their columns.
Precision: float64. The tally is a sum of integers, and the largest norms are compared as the
integers that have their bits, so that the order of the atomic operations changes nothing.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Of the tally, before the columns' numbers.
NORM_OF_X = tl.constexpr(0)
NORM_OF_Y = tl.constexpr(1)
NORMS = 2
COLUMNS_BEGIN = tl.constexpr(NORMS)


@triton.jit
def load_wide(
    features, row, in_rows, stride, start, depth, ROUNDS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows of features as they are multiplied, float64; zeros where there are none."""
    k = start + tl.arange(0, COLUMNS)[None, :]
    at = features + row.to(tl.int64)[:, None] * stride + k
    found = tl.load(at, mask=in_rows[:, None] & (k < depth), other=0)
    if ROUNDS:
        found = found.to(tl.bfloat16)
    return found.to(tl.float64)


@triton.jit
def add_to_tally(tally, i, j, names):
    tl.atomic_add(tally + COLUMNS_BEGIN + j, i.to(tl.int64) + 4294967296, mask=names)


@triton.jit
def tally_kernel(target, tally, rows, columns, ROWS: tl.constexpr):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.load(target + i, mask=i < rows, other=-1)
    add_to_tally(tally, i, j, (j >= 0) & (j < columns))


@triton.jit
def norms_and_targets_kernel(
    x, y, target, scale, bias, row_bias, col_bias, tally, logit, rows, columns, depth, x_stride,
    y_stride, HAS_TARGET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_ROW_BIAS: tl.constexpr,
    HAS_COL_BIAS: tl.constexpr, HAS_Y: tl.constexpr, NEEDS_NORMS: tl.constexpr,
    TALLIES: tl.constexpr, ROUNDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows, in_columns = i < rows, i < columns
    of_target = tl.zeros([ROWS], tl.float64)
    of_x, of_y = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    if HAS_TARGET:
        j = tl.load(target + i, mask=in_rows, other=-1)
        names = in_rows & (j >= 0) & (j < columns)
    for start in range(0, depth, COLUMNS):
        left = load_wide(x, i, in_rows, x_stride, start, depth, ROUNDS, COLUMNS)
        if HAS_TARGET:
            right = load_wide(y, j, names, y_stride, start, depth, ROUNDS, COLUMNS)
            of_target += tl.sum(left * right, 1)
        if NEEDS_NORMS:
            of_x += tl.sum(left * left, 1)
            if HAS_Y:
                right = load_wide(y, i, in_columns, y_stride, start, depth, ROUNDS, COLUMNS)
                of_y += tl.sum(right * right, 1)
    if NEEDS_NORMS:
        tl.atomic_max(tally + NORM_OF_X, tl.max(of_x, 0).to(tl.int64, bitcast=True))
        if HAS_Y:
            tl.atomic_max(tally + NORM_OF_Y, tl.max(of_y, 0).to(tl.int64, bitcast=True))
    if HAS_TARGET:
        if TALLIES:
            add_to_tally(tally, i, j, names)
        of_target = of_target * tl.load(scale).to(tl.float64)
        if HAS_BIAS:
            of_target += tl.load(bias).to(tl.float64)
        if HAS_ROW_BIAS:
            of_target += tl.load(row_bias + i, mask=in_rows, other=0).to(tl.float64)
        if HAS_COL_BIAS:
            of_target += tl.load(col_bias + j, mask=names, other=0).to(tl.float64)
        tl.store(logit + i, tl.where(names | (j == -1), of_target, float("nan")), mask=in_rows)
