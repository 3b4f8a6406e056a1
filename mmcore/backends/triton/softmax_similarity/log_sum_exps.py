"""From sums of exponentials to the statistics of rows and columns.

    lse = log(exp(log Σ E + ln(2)·(shift + largest) + biases) + exp(lse of the targets))
    pos = the target's logit, or the sum of the logits of positives by label

`largest` is log2(e) times the largest bias of the other side. Where a sum is too small for the
shared shift, the row or column is flagged, and a block with a flagged one computes its logits again
(running_log_sum_exps.py). Only the device knows whether there are any.

Never stored: anything larger than O(N + M).
Loop order: a program takes BM rows, or BN columns, of a tile and adds up their partial sums in one
order: O(N + M), but for flagged blocks. A column that one row names finds that row in its tally
(norms_and_targets.py). For a column that several rows name, the program reads all targets, twice.
Precision: float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.constants import Constant
from mmcore.backends.triton.float64 import in_nats, log_add_exp
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.running_log_sum_exps import running_log_sum_exps
from mmcore.backends.triton.softmax_similarity.shared_shift import (
    SMALLEST_TRUSTED_SUM,
    numbers_of,
    store_numbers,
    with_biases,
)

PARTS, TARGETS = Constant(32), Constant(64)


class SideSums(NamedTuple):
    """Partial sums of one side, (parts, size): of E, and of logits of positives by label."""

    total: Any
    positive: Any
    parts: Any  # how many


class Targets(NamedTuple):
    """Which rows name a column, and the float64 logits (norms_and_targets.py)."""

    tally: Any  # (M,)
    logit: Any  # (N,)


class SideStatistics(NamedTuple):
    """What the op returns of one side, float64."""

    lse: Any
    pos: Any


class Matrix(NamedTuple):
    """What every block of statistics is computed from, besides x and y."""

    by_rows: Any  # SideSums
    by_columns: Any
    row_side: Any  # SideBiases
    col_side: Any
    bias: Any
    counts: Any  # of positives by label
    ids: Any
    targets: Any
    size: Any
    strides: Any


@triton.jit
def sum_of_parts(parts, own, size, count):
    """Of (count, size) numbers those of `own`, float64."""
    total = tl.zeros(own.shape, tl.float64)
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
def row_targets(matrix, own, PAIRS: tl.constexpr):
    """Positive and log-sum-exp of the target of every row."""
    inside = own < matrix.size.rows
    has_target = inside
    if not PAIRS.IS_DIAGONAL:
        has_target = tl.load(matrix.ids.target + own, mask=inside, other=-1) != -1
    logit = tl.load(matrix.targets.logit + own, mask=inside, other=0)
    return tl.where(has_target, logit, 0.0), tl.where(has_target, logit, float("-inf"))


@triton.jit
def named_by(matrix, start, own):
    """Which of TARGETS rows from `start` on name the columns, and the rows' logits."""
    i = start + tl.arange(0, TARGETS)
    inside = i < matrix.size.rows
    names = tl.load(matrix.ids.target + i, mask=inside, other=-1)[:, None] == own[None, :]
    return names, tl.load(matrix.targets.logit + i, mask=inside, other=0)[:, None]


@triton.jit
def column_targets(matrix, own):
    """Sum and log-sum-exp of the logits of the rows that name a column."""
    rows, columns = matrix.size.rows, matrix.size.columns
    named = tl.load(matrix.targets.tally + own, mask=own < columns, other=0)
    count = named >> 32
    by_one = tl.load(matrix.targets.logit + (named & 4294967295), mask=count == 1, other=0)
    total = tl.where(count == 1, by_one, 0.0)
    lse = tl.where(count == 1, by_one, float("-inf"))
    if tl.max(count, 0) > 1:
        maximum = tl.full(own.shape, float("-inf"), tl.float64)
        for start in range(0, rows, TARGETS):
            names, logit_i = named_by(matrix, start, own)
            largest = tl.max(tl.where(names, logit_i, float("-inf")), 0)
            maximum = tl.where(largest > maximum, largest, maximum)
            total += tl.where(count > 1, tl.sum(tl.where(names, logit_i, 0.0), 0), 0.0)
        base = tl.where(maximum == float("-inf"), 0.0, maximum)
        sums = tl.zeros(own.shape, tl.float64)
        for start in range(0, rows, TARGETS):
            names, logit_i = named_by(matrix, start, own)
            sums += tl.sum(tl.where(names, tl.exp(logit_i - base[None, :]), 0.0), 0)
        lse_of_several = tl.where(total == total, base + tl.log(sums), total)
        lse = tl.where(count > 1, lse_of_several, lse)
    return total, lse


@triton.jit
def block_sums(
    matrix, own, BY_COLUMNS: tl.constexpr, HAS_LABELS: tl.constexpr, IS_MIRRORED: tl.constexpr
):
    """Σ E of a block of one side, and Σ logits of positives by label; float64.

    IS_MIRRORED: the matrix is its own transpose, and sums by columns belong to its rows.
    """
    size = matrix.size.columns if BY_COLUMNS else matrix.size.rows
    own_sums = matrix.by_columns if BY_COLUMNS else matrix.by_rows
    total = sum_of_parts(own_sums.total, own, size, own_sums.parts)
    by_label = tl.zeros(own.shape, tl.float64)
    if HAS_LABELS:
        by_label = sum_of_parts(own_sums.positive, own, size, own_sums.parts)
    if IS_MIRRORED:
        mirrored = matrix.by_columns
        total += sum_of_parts(mirrored.total, own, size, mirrored.parts)
        if HAS_LABELS:
            by_label += sum_of_parts(mirrored.positive, own, size, mirrored.parts)
    return total, by_label


@triton.jit
def block_statistics(
    block, x, y, matrix, numbers, BY_COLUMNS: tl.constexpr, PAIRS: tl.constexpr,
    BIASES: tl.constexpr, IS_MIRRORED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Rows, or columns, of a block, their lse and their pos."""
    OWN: tl.constexpr = TILE.BN if BY_COLUMNS else TILE.BM
    HAS_OWN_BIAS: tl.constexpr = BIASES.HAS_COL_BIAS if BY_COLUMNS else BIASES.HAS_ROW_BIAS
    HAS_OTHER_BIAS: tl.constexpr = BIASES.HAS_ROW_BIAS if BY_COLUMNS else BIASES.HAS_COL_BIAS
    size = matrix.size.columns if BY_COLUMNS else matrix.size.rows
    own_side = matrix.col_side if BY_COLUMNS else matrix.row_side
    other_side = matrix.row_side if BY_COLUMNS else matrix.col_side
    own = block * OWN + tl.arange(0, OWN)
    inside = own < size
    total, by_label = block_sums(matrix, own, BY_COLUMNS, PAIRS.HAS_LABELS, IS_MIRRORED)
    bias = own_biases(matrix.bias, own_side, own, size, BIASES.HAS_BIAS, HAS_OWN_BIAS)
    positive = tl.zeros([OWN], tl.float64)
    lse_of_targets = positive + float("-inf")
    if PAIRS.IS_DIAGONAL or (PAIRS.HAS_TARGET and not BY_COLUMNS):
        positive, lse_of_targets = row_targets(matrix, own, PAIRS)
    elif PAIRS.HAS_TARGET:
        positive, lse_of_targets = column_targets(matrix, own)
    elif PAIRS.HAS_LABELS:
        count = matrix.counts.col if BY_COLUMNS else matrix.counts.row
        number = tl.load(count + own, mask=inside, other=0)
        positive = tl.where(number > 0, by_label + number.to(tl.float64) * bias, 0.0)
    if PAIRS.HAS_TARGET and PAIRS.DENOMINATOR == "negatives":
        # A target outside the matrix spoils its row whatever is counted.
        lse_of_targets = tl.where(positive == positive, float("-inf"), positive)
    level = numbers.shift.to(tl.float64)
    if HAS_OTHER_BIAS:
        level += tl.load(other_side.largest)
    is_empty = total == 0
    others = tl.log(tl.where(is_empty, 1.0, total)) + in_nats(level) + bias
    others = tl.where(is_empty, float("-inf"), others)
    is_flagged = inside & ((total < SMALLEST_TRUSTED_SUM) | (own * 0 + numbers.is_usable == 0))
    if tl.max(is_flagged.to(tl.int32), 0) > 0:
        found = running_log_sum_exps(
            block, x, y, numbers, matrix.row_side, matrix.col_side, matrix.ids,
            matrix.size, matrix.strides, BY_COLUMNS, PAIRS, BIASES, TILE,
        )  # fmt: skip
        others = tl.where(is_flagged, found, others)
    return own, log_add_exp(others, lse_of_targets), positive


@triton.jit
def store_block(
    block, x, y, matrix, numbers, out, BY_COLUMNS: tl.constexpr, PAIRS: tl.constexpr,
    BIASES: tl.constexpr, IS_MIRRORED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    size = matrix.size.columns if BY_COLUMNS else matrix.size.rows
    own, lse, positive = block_statistics(
        block, x, y, matrix, numbers, BY_COLUMNS, PAIRS, BIASES, IS_MIRRORED, TILE
    )
    tl.store(out.lse + own, lse, mask=own < size)
    tl.store(out.pos + own, positive, mask=own < size)


@planned
@triton.jit
def log_sum_exps_kernel(
    x, y, matrix, norms, scale, row_out, col_out, stored, PAIRS: tl.constexpr, BIASES: tl.constexpr,
    HAS_COLUMNS: tl.constexpr, IS_MIRRORED: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Programs of the rows, then those of the columns, if columns have statistics."""
    program, row_blocks = tl.program_id(0), tl.cdiv(matrix.size.rows, TILE.BM)
    numbers = numbers_of(norms, scale)
    numbers = with_biases(numbers, matrix.bias, matrix.row_side, matrix.col_side, BIASES)
    if program == 0:
        store_numbers(stored, numbers)
    if program < row_blocks:
        store_block(
            program, x, y, matrix, numbers, row_out, False, PAIRS, BIASES, IS_MIRRORED, TILE
        )
    elif HAS_COLUMNS:
        store_block(
            program - row_blocks, x, y, matrix, numbers, col_out, True, PAIRS, BIASES, False, TILE
        )
