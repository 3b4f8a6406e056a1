"""The largest norms of both sides, and the positives that targets name: O((N + M)·D), float64.

    norm_x = max_i ‖x_i‖²        norm_y = max_j ‖y_j‖²
    logit_i = scale·⟨x_i, y_target(i)⟩ + biases
    tally_j = Σ_{i: target(i) = j} (2³² + i)

A column that one row alone names finds that row in the lower half of its tally: no column needs to
look through all targets. A target of −1 names nothing; one outside the matrix reads nothing, and
its logit is NaN. Never stored: which pairs are positives. Loop order: a program takes some rows of
x, and as many of y. Sums of the tally are of integers, and largest numbers are compared as the
integers that their bits are, so that the order in which programs add them changes nothing.
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
