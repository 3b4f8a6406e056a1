"""The positives that targets name, in float64: O(N·D), and O(N·M) compares.

    logit_i = scale·⟨x_i, y_target(i)⟩ + biases
    col_pos_j = Σ_{i: target(i) = j} logit_i
    col_lse_j = log Σ_{i: target(i) = j} exp(logit_i)

A target of −1 names nothing. One outside the matrix reads nothing and gives NaN. Never stored:
which pairs are positives. Loop order: a program takes some rows, or some columns and looks through
all targets instead of being scattered to, so that the order of sums is fixed. Precision: float64.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def target_products_kernel(
    x, y, target, out, rows, columns, depth, x_stride, y_stride,
    ROUNDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out_i = ⟨x_i, y_target(i)⟩."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = i < rows
    j = tl.load(target + i, mask=in_rows, other=-1)
    in_y = in_rows & (j >= 0) & (j < columns)
    total = tl.zeros([ROWS], tl.float64)
    for start in range(0, depth, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        in_depth = k < depth
        of_x = tl.load(
            x + i.to(tl.int64)[:, None] * x_stride + k, mask=in_rows[:, None] & in_depth, other=0
        )
        of_y = tl.load(y + j[:, None] * y_stride + k, mask=in_y[:, None] & in_depth, other=0)
        if ROUNDS:
            of_x, of_y = of_x.to(tl.bfloat16), of_y.to(tl.bfloat16)
        total += tl.sum(of_x.to(tl.float64) * of_y.to(tl.float64), 1)
    tl.store(out + i, tl.where(in_y | (j == -1), total, float("nan")), mask=in_rows)


@triton.jit
def names(target, start, j, rows, ROWS: tl.constexpr):
    """The rows from `start`, whether each names column j, and whether any does."""
    i = start + tl.arange(0, ROWS)
    named = tl.load(target + i, mask=i < rows, other=-1)[:, None] == j[None, :]
    return i, named, tl.sum(tl.sum(named.to(tl.int32), 1), 0) > 0


@triton.jit
def column_positives_kernel(
    target, logit, col_pos, col_lse, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Nearly every tile of the compares is empty, and then costs no float64 arithmetic."""
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    maximum = tl.full([COLUMNS], float("-inf"), tl.float64)
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        i, is_positive, is_any = names(target, start, j, rows, ROWS)
        if is_any:
            logit_i = tl.load(logit + i, mask=i < rows, other=0)[:, None]
            largest = tl.max(tl.where(is_positive, logit_i, float("-inf")), 0)
            maximum = tl.maximum(maximum, largest)
            total += tl.sum(tl.where(is_positive, logit_i, 0.0), 0)
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    sums = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        i, is_positive, is_any = names(target, start, j, rows, ROWS)
        if is_any:
            logit_i = tl.load(logit + i, mask=i < rows, other=0)[:, None]
            sums += tl.sum(tl.where(is_positive, tl.exp(logit_i - base[None, :]), 0.0), 0)
    tl.store(col_pos + j, total, mask=j < columns)
    lse = tl.where(total == total, base + tl.log(sums), total)
    tl.store(col_lse + j, lse, mask=j < columns)
