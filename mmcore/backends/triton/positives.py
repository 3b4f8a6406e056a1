"""The positives that targets name, in float64: O(N·D), and O(N·M) compares.

    logit_i = scale·⟨x_i, y_target(i)⟩ + biases
    col_pos_j = Σ_{i: target(i) = j} logit_i
    col_lse_j = log Σ_{i: target(i) = j} exp(logit_i)

A target of −1 names nothing. One outside the matrix reads nothing and gives NaN. Columns look
through all targets instead of being scattered to: the order of their sums is fixed.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def row_dots_kernel(
    x, y, target, out, rows, columns, depth, x_stride, y_stride,
    HAS_TARGET: tl.constexpr, ROUNDS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """out_i = ⟨x_i, y_target(i)⟩, or ⟨x_i, y_i⟩, in float64."""
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows = i < rows
    if HAS_TARGET:
        j = tl.load(target + i, mask=in_rows, other=-1)
    else:
        j = i.to(tl.int64)
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
    if HAS_TARGET:
        total = tl.where(in_y | (j == -1), total, float("nan"))
    tl.store(out + i, total, mask=in_rows)


@triton.jit
def column_positives_kernel(
    target, logit, col_pos, col_lse, rows, columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Nearly every tile of the compares is empty, and then costs no float64 arithmetic."""
    j = tl.program_id(0) * COLUMNS + tl.arange(0, COLUMNS)
    maximum = tl.full([COLUMNS], float("-inf"), tl.float64)
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        i = start + tl.arange(0, ROWS)
        target_i = tl.load(target + i, mask=i < rows, other=-1)
        is_positive = target_i[:, None] == j[None, :]
        if tl.sum(tl.sum(is_positive.to(tl.int32), 1), 0) > 0:
            logit_i = tl.load(logit + i, mask=i < rows, other=0)[:, None]
            largest = tl.max(tl.where(is_positive, logit_i, float("-inf")), 0)
            maximum = tl.maximum(maximum, largest)
            total += tl.sum(tl.where(is_positive, logit_i, 0.0), 0)
    base = tl.where(maximum == float("-inf"), 0.0, maximum)
    sums = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, rows, ROWS):
        i = start + tl.arange(0, ROWS)
        target_i = tl.load(target + i, mask=i < rows, other=-1)
        is_positive = target_i[:, None] == j[None, :]
        if tl.sum(tl.sum(is_positive.to(tl.int32), 1), 0) > 0:
            logit_i = tl.load(logit + i, mask=i < rows, other=0)[:, None]
            sums += tl.sum(tl.where(is_positive, tl.exp(logit_i - base[None, :]), 0.0), 0)
    tl.store(col_pos + j, total, mask=j < columns)
    lse = tl.where(total == total, base + tl.log(sums), total)
    tl.store(col_lse + j, lse, mask=j < columns)
