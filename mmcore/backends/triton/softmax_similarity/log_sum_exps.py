"""From sums of exponentials to the statistics of rows and columns: O(N + M).

    lse = log(exp(log Σ E + ln(2)·(shift + largest) + biases) + exp(lse of the targets))
    pos = the target's logit, or the sum of the logits of positives by label

`largest` is log2(e) times the largest bias of the other side. Where a sum is too small for the
shared shift, the row or column is flagged, and its lse is that of its targets only until
running_log_sum_exp_kernel (exponential_sums.py) adds the rest.

Never stored: anything larger than O(N + M).
Loop order: a program takes BLOCK rows, or BLOCK columns, and adds up their partial sums in one
order. A column that one row names finds that row in its tally (norms_and_targets.py). For a column
that several rows name, the program reads all targets, twice.
Precision: float64.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_nats, log_add_exp
from mmcore.backends.triton.norms_and_targets import COLUMNS_BEGIN

BLOCK, PARTS = 64, 32
# A sum below may lack entries that were flushed to 0, each less than 2⁻⁴⁰ of it above.
SMALLEST_TRUSTED_SUM = tl.constexpr(2.0**-86)


@triton.jit
def sum_of_parts(parts, own, size, count, BLOCK: tl.constexpr, PARTS: tl.constexpr):
    """Of (count, size) numbers those of `own`, float64."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < count)[:, None] & (own < size)[None, :]
        at = part.to(tl.int64)[:, None] * size + own[None, :]
        total += tl.sum(tl.load(parts + at, mask=inside, other=0).to(tl.float64), 0)
    return total


@triton.jit
def own_biases(bias, of_side, own, size, HAS_BIAS: tl.constexpr, HAS_OWN_BIAS: tl.constexpr):
    """What all logits of a row, or of a column, share; float64."""
    result = tl.zeros(own.shape, tl.float64)
    if HAS_BIAS:
        result += tl.load(bias).to(tl.float64)
    if HAS_OWN_BIAS:
        result += tl.load(of_side + own, mask=own < size, other=0).to(tl.float64)
    return result


@triton.jit
def row_targets(target, logit, own, size):
    """Positive and log-sum-exp of the target of every row."""
    has_target = tl.load(target + own, mask=own < size, other=-1) != -1
    of_target = tl.load(logit + own, mask=own < size, other=0)
    return tl.where(has_target, of_target, 0.0), tl.where(has_target, of_target, float("-inf"))


@triton.jit
def column_targets(target, tally, logit, own, size, rows, BLOCK: tl.constexpr):
    """Sum and log-sum-exp of the logits of the rows that name a column."""
    named = tl.load(tally + COLUMNS_BEGIN + own, mask=own < size, other=0)
    count = named >> 32
    by_one = tl.load(logit + (named & 4294967295), mask=count == 1, other=0)
    total = tl.where(count == 1, by_one, 0.0)
    lse = tl.where(count == 1, by_one, float("-inf"))
    if tl.max(count, 0) > 1:
        maximum = tl.full([BLOCK], float("-inf"), tl.float64)
        for start in range(0, rows, BLOCK):
            i = start + tl.arange(0, BLOCK)
            names = tl.load(target + i, mask=i < rows, other=-1)[:, None] == own[None, :]
            logit_i = tl.load(logit + i, mask=i < rows, other=0)[:, None]
            largest = tl.max(tl.where(names, logit_i, float("-inf")), 0)
            maximum = tl.where(largest > maximum, largest, maximum)
            total += tl.where(count > 1, tl.sum(tl.where(names, logit_i, 0.0), 0), 0.0)
        base = tl.where(maximum == float("-inf"), 0.0, maximum)
        sums = tl.zeros([BLOCK], tl.float64)
        for start in range(0, rows, BLOCK):
            i = start + tl.arange(0, BLOCK)
            names = tl.load(target + i, mask=i < rows, other=-1)[:, None] == own[None, :]
            logit_i = tl.load(logit + i, mask=i < rows, other=0)[:, None]
            sums += tl.sum(tl.where(names, tl.exp(logit_i - base[None, :]), 0.0), 0)
        of_several = tl.where(total == total, base + tl.log(sums), total)
        lse = tl.where(count > 1, of_several, lse)
    return total, lse


@triton.jit
def side_statistics(
    own, size, total, of_labels, positive, of_targets, own_bias, count, shared, largest, lse, pos,
    flagged, DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_OTHER_BIAS: tl.constexpr,
):  # fmt: skip
    """Stores what one side's block adds up to."""
    inside = own < size
    level = tl.load(shared)
    if HAS_OTHER_BIAS:
        level += tl.load(largest)
    is_empty = total == 0
    others = tl.log(tl.where(is_empty, 1.0, total)) + in_nats(level) + own_bias
    others = tl.where(is_empty, float("-inf"), others)
    # One number, loaded for each: the interpreter cannot spread a scalar condition.
    is_flagged = (total < SMALLEST_TRUSTED_SUM) | (tl.load(shared + 1 + own * 0) == 0)
    if HAS_LABELS:
        number = tl.load(count + own, mask=inside, other=0)
        positive = tl.where(number > 0, of_labels + number.to(tl.float64) * own_bias, 0.0)
    elif HAS_TARGET and DENOMINATOR == "negatives":
        # A target outside the matrix spoils its row whatever is counted.
        of_targets = tl.where(positive == positive, float("-inf"), positive)
    result = tl.where(is_flagged, of_targets, log_add_exp(others, of_targets))
    tl.store(lse + own, result, mask=inside)
    tl.store(pos + own, positive, mask=inside)
    tl.store(flagged + own, is_flagged.to(tl.int8), mask=inside)


@triton.jit
def log_sum_exps_kernel(
    row_sum, mirrored_sum, col_sum, row_pos_sum, mirrored_pos_sum, col_pos_sum, row_parts,
    col_parts, shared, bias, row_bias, col_bias, row_largest, col_largest, row_count, col_count,
    target, tally, logit, row_lse, col_lse, row_pos, col_pos, row_flagged, col_flagged,
    rows, columns, DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr,
    IS_MIRRORED: tl.constexpr, BLOCK: tl.constexpr, PARTS: tl.constexpr,
):  # fmt: skip
    """Programs of the rows, then those of the columns, where any are launched.

    IS_MIRRORED: what the columns of a matrix that is its own transpose add up to is its rows'.
    """
    program, row_blocks = tl.program_id(0), tl.cdiv(rows, BLOCK)
    zero = tl.zeros([BLOCK], tl.float64)
    positive, of_targets = zero, zero + float("-inf")
    of_labels = zero
    if program < row_blocks:
        i = program * BLOCK + tl.arange(0, BLOCK)
        total = sum_of_parts(row_sum, i, rows, row_parts, BLOCK, PARTS)
        if HAS_LABELS:
            of_labels = sum_of_parts(row_pos_sum, i, rows, row_parts, BLOCK, PARTS)
        if IS_MIRRORED:
            total += sum_of_parts(mirrored_sum, i, rows, col_parts, BLOCK, PARTS)
            if HAS_LABELS:
                of_labels += sum_of_parts(mirrored_pos_sum, i, rows, col_parts, BLOCK, PARTS)
        if HAS_TARGET:
            positive, of_targets = row_targets(target, logit, i, rows)
        own_bias = own_biases(bias, row_bias, i, rows, HAS_BIAS, HAS_ROW_BIAS)
        side_statistics(
            i, rows, total, of_labels, positive, of_targets, own_bias, row_count, shared,
            col_largest, row_lse, row_pos, row_flagged, DENOMINATOR, HAS_TARGET, HAS_LABELS,
            HAS_COL_BIAS,
        )  # fmt: skip
    else:
        j = (program - row_blocks) * BLOCK + tl.arange(0, BLOCK)
        total = sum_of_parts(col_sum, j, columns, col_parts, BLOCK, PARTS)
        if HAS_LABELS:
            of_labels = sum_of_parts(col_pos_sum, j, columns, col_parts, BLOCK, PARTS)
        if HAS_TARGET:
            positive, of_targets = column_targets(target, tally, logit, j, columns, rows, BLOCK)
        own_bias = own_biases(bias, col_bias, j, columns, HAS_BIAS, HAS_COL_BIAS)
        side_statistics(
            j, columns, total, of_labels, positive, of_targets, own_bias, col_count, shared,
            row_largest, col_lse, col_pos, col_flagged, DENOMINATOR, HAS_TARGET, HAS_LABELS,
            HAS_ROW_BIAS,
        )  # fmt: skip
