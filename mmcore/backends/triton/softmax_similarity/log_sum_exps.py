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

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_nats, log_add_exp
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.norms_and_targets import COLUMNS_BEGIN
from mmcore.backends.triton.softmax_similarity.shared_shift import SMALLEST_TRUSTED_SUM

BLOCK, PARTS = tl.constexpr(64), tl.constexpr(32)


class SideSums(NamedTuple):
    """Partial sums of one side, (parts, size): of E, and of logits of positives by label."""

    total: Any
    positive: Any
    parts: Any  # how many


class Targets(NamedTuple):
    """Columns that targets name, which rows name a column, and the float64 logits."""

    column: Any  # (N,)
    tally: Any  # norms_and_targets.py
    logit: Any  # (N,)


class SideStatistics(NamedTuple):
    """What the op returns of one side, and which of it the shared shift could not serve."""

    lse: Any
    pos: Any
    flagged: Any


class BlockSums(NamedTuple):
    """What a block of one side adds up to, float64."""

    total: Any  # Σ E
    by_label: Any  # Σ logits of positives by label
    targets: Any  # Σ logits of targets
    lse_of_targets: Any
    bias: Any  # that all its logits share


@triton.jit
def sum_of_parts(parts, own, size, count):
    """Of (count, size) numbers those of `own`, float64."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, PARTS):
        part = start + tl.arange(0, PARTS)
        inside = (part < count)[:, None] & (own < size)[None, :]
        at = part.to(tl.int64)[:, None] * size + own[None, :]
        total += tl.sum(tl.load(parts + at, mask=inside, other=0).to(tl.float64), 0)
    return total


@triton.jit
def own_biases(bias, side, own, size, HAS_BIAS: tl.constexpr, HAS_OWN_BIAS: tl.constexpr):
    """The sum of the biases that all logits of a row, or of a column, share; float64."""
    result = tl.zeros(own.shape, tl.float64)
    if HAS_BIAS:
        result += tl.load(bias).to(tl.float64)
    if HAS_OWN_BIAS:
        result += tl.load(side.bias + own, mask=own < size, other=0).to(tl.float64)
    return result


@triton.jit
def row_targets(targets, own, size):
    """Positive and log-sum-exp of the target of every row."""
    has_target = tl.load(targets.column + own, mask=own < size, other=-1) != -1
    logit = tl.load(targets.logit + own, mask=own < size, other=0)
    return tl.where(has_target, logit, 0.0), tl.where(has_target, logit, float("-inf"))


@triton.jit
def column_targets(targets, own, size):
    """Sum and log-sum-exp of the logits of the rows that name a column."""
    rows, columns = size.rows, size.columns
    named = tl.load(targets.tally + COLUMNS_BEGIN + own, mask=own < columns, other=0)
    count = named >> 32
    by_one = tl.load(targets.logit + (named & 4294967295), mask=count == 1, other=0)
    total = tl.where(count == 1, by_one, 0.0)
    lse = tl.where(count == 1, by_one, float("-inf"))
    if tl.max(count, 0) > 1:
        maximum = tl.full([BLOCK], float("-inf"), tl.float64)
        for start in range(0, rows, BLOCK):
            i = start + tl.arange(0, BLOCK)
            names = tl.load(targets.column + i, mask=i < rows, other=-1)[:, None] == own[None, :]
            logit_i = tl.load(targets.logit + i, mask=i < rows, other=0)[:, None]
            largest = tl.max(tl.where(names, logit_i, float("-inf")), 0)
            maximum = tl.where(largest > maximum, largest, maximum)
            total += tl.where(count > 1, tl.sum(tl.where(names, logit_i, 0.0), 0), 0.0)
        base = tl.where(maximum == float("-inf"), 0.0, maximum)
        sums = tl.zeros([BLOCK], tl.float64)
        for start in range(0, rows, BLOCK):
            i = start + tl.arange(0, BLOCK)
            names = tl.load(targets.column + i, mask=i < rows, other=-1)[:, None] == own[None, :]
            logit_i = tl.load(targets.logit + i, mask=i < rows, other=0)[:, None]
            sums += tl.sum(tl.where(names, tl.exp(logit_i - base[None, :]), 0.0), 0)
        lse_of_several = tl.where(total == total, base + tl.log(sums), total)
        lse = tl.where(count > 1, lse_of_several, lse)
    return total, lse


@triton.jit
def store_statistics(
    own, size, sums, count, shared, other_side, out, PAIRS: tl.constexpr,
    HAS_OTHER_BIAS: tl.constexpr,
):  # fmt: skip
    """Stores the statistics of one side's block."""
    inside = own < size
    positive, lse_of_targets = sums.targets, sums.lse_of_targets
    level = tl.load(shared)
    if HAS_OTHER_BIAS:
        level += tl.load(other_side.largest)
    is_empty = sums.total == 0
    others = tl.log(tl.where(is_empty, 1.0, sums.total)) + in_nats(level) + sums.bias
    others = tl.where(is_empty, float("-inf"), others)
    # One number, loaded for each: the interpreter cannot spread a scalar condition.
    is_flagged = (sums.total < SMALLEST_TRUSTED_SUM) | (tl.load(shared + 1 + own * 0) == 0)
    if PAIRS.HAS_LABELS:
        number = tl.load(count + own, mask=inside, other=0)
        positive = tl.where(number > 0, sums.by_label + number.to(tl.float64) * sums.bias, 0.0)
    elif PAIRS.HAS_TARGET and PAIRS.DENOMINATOR == "negatives":
        # A target outside the matrix spoils its row whatever is counted.
        lse_of_targets = tl.where(positive == positive, float("-inf"), positive)
    result = tl.where(is_flagged, lse_of_targets, log_add_exp(others, lse_of_targets))
    tl.store(out.lse + own, result, mask=inside)
    tl.store(out.pos + own, positive, mask=inside)
    tl.store(out.flagged + own, is_flagged.to(tl.int8), mask=inside)


@planned
@triton.jit
def log_sum_exps_kernel(
    by_rows, by_columns, shared, bias, row_side, col_side, counts, targets, row_out, col_out, size,
    PAIRS: tl.constexpr, BIASES: tl.constexpr, IS_MIRRORED: tl.constexpr,
):  # fmt: skip
    """Programs of the rows, then those of the columns, if columns have statistics.

    IS_MIRRORED: the matrix is its own transpose, and sums by columns belong to its rows.
    """
    program, row_blocks = tl.program_id(0), tl.cdiv(size.rows, BLOCK)
    zero = tl.zeros([BLOCK], tl.float64)
    positive, lse_of_targets = zero, zero + float("-inf")
    by_label = zero
    if program < row_blocks:
        rows = size.rows
        i = program * BLOCK + tl.arange(0, BLOCK)
        total = sum_of_parts(by_rows.total, i, rows, by_rows.parts)
        if PAIRS.HAS_LABELS:
            by_label = sum_of_parts(by_rows.positive, i, rows, by_rows.parts)
        if IS_MIRRORED:
            total += sum_of_parts(by_columns.total, i, rows, by_columns.parts)
            if PAIRS.HAS_LABELS:
                by_label += sum_of_parts(by_columns.positive, i, rows, by_columns.parts)
        if PAIRS.HAS_TARGET:
            positive, lse_of_targets = row_targets(targets, i, rows)
        own = own_biases(bias, row_side, i, rows, BIASES.HAS_BIAS, BIASES.HAS_ROW_BIAS)
        store_statistics(
            i, rows, BlockSums(total, by_label, positive, lse_of_targets, own), counts.row, shared,
            col_side, row_out, PAIRS, BIASES.HAS_COL_BIAS,
        )  # fmt: skip
    else:
        columns = size.columns
        j = (program - row_blocks) * BLOCK + tl.arange(0, BLOCK)
        total = sum_of_parts(by_columns.total, j, columns, by_columns.parts)
        if PAIRS.HAS_LABELS:
            by_label = sum_of_parts(by_columns.positive, j, columns, by_columns.parts)
        if PAIRS.HAS_TARGET:
            positive, lse_of_targets = column_targets(targets, j, size)
        own = own_biases(bias, col_side, j, columns, BIASES.HAS_BIAS, BIASES.HAS_COL_BIAS)
        store_statistics(
            j, columns, BlockSums(total, by_label, positive, lse_of_targets, own), counts.col,
            shared, row_side, col_out, PAIRS, BIASES.HAS_ROW_BIAS,
        )  # fmt: skip
