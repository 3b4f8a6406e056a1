"""Terms of G for each row and each column, computed in float64: O(N + M).

    R_i = a_i·2^(shift + largest + log2(e)·(bias + row_bias_i − row_lse_i))        C_j likewise
    target_i = c_i + d_t + a_i·exp(s_it − row_lse_i) + b_t·exp(s_it − col_lse_t), t = target(i)

a, b, c, d are the upstream gradients of row_lse, col_lse, row_pos, col_pos, and `largest` is the
largest log2(e)·col_bias_j. All four are divided by one power of two, the unit (float64.py), so that
G keeps its digits in the dtype that is multiplied.

Never stored: anything larger than O(N + M).
Loop order: a program takes BLOCK rows and as many columns. Each program looks for the largest
upstream gradient, which determines the unit; where there are many, a launch before this one does.
Precision: float64. Results are stored in float32, lse in two parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.constants import Constant
from mmcore.backends.triton.float64 import unit_of
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.log_sum_exps import own_biases
from mmcore.backends.triton.softmax_similarity.shared_shift import (
    load_numbers,
    numbers_of,
    store_numbers,
    with_biases,
)
from mmcore.backends.triton.softmax_similarity.terms_memory import (
    BIAS,
    BIAS_FACTOR,
    POSITIVE,
    WEIGHT,
    factor_and_trust,
    store_common,
    terms_in,
)

BLOCK = Constant(128)
# More rows or columns than these have a launch of their own that finds the largest gradient: at
# most LARGEST_PROGRAMS programs, in blocks of LARGEST_BLOCK.
MOST_WITHOUT_A_LAUNCH = 16384
LARGEST_PROGRAMS, LARGEST_BLOCK = Constant(64), Constant(1024)
# Behind the unit and its product with the scale.
LARGEST_BEGINS = Constant(2)


class Upstream(NamedTuple):
    """Upstream gradients of the statistics, float64; or their strides."""

    row_lse: Any
    col_lse: Any
    row_pos: Any
    col_pos: Any


class SideGradients(NamedTuple):
    """Log-sum-exps of a block of one side, and the upstream gradients over the unit; float64."""

    lse: Any
    weight: Any  # of lse
    positive: Any  # of pos
    bias: Any  # that all logits of a row, or column, share


@triton.jit
def largest_of(vector, size, stride, first, step):
    """max |vector| of the blocks from `first` on, each `step` behind the one before."""
    largest = tl.zeros([LARGEST_BLOCK], tl.float64)
    for start in range(first, size, step):
        at = start + tl.arange(0, LARGEST_BLOCK)
        found = tl.abs(tl.load(vector + at.to(tl.int64) * stride, mask=at < size, other=0))
        largest = tl.where(found > largest, found, largest)
    return tl.max(largest, 0)


@triton.jit
def largest_gradient(upstream, strides, size, first, step, HAS_COLUMNS: tl.constexpr):
    """Of all that are upstream. NaN does not count: it spoils its own rows."""
    found = largest_of(upstream.row_lse, size.rows, strides.row_lse, first, step)
    other = largest_of(upstream.row_pos, size.rows, strides.row_pos, first, step)
    found = tl.maximum(found, other)
    if HAS_COLUMNS:
        other = largest_of(upstream.col_lse, size.columns, strides.col_lse, first, step)
        found = tl.maximum(found, other)
        other = largest_of(upstream.col_pos, size.columns, strides.col_pos, first, step)
        found = tl.maximum(found, other)
    return found


@planned
@triton.jit
def largest_gradients_kernel(upstream, strides, wide, size, HAS_COLUMNS: tl.constexpr):
    """The largest upstream gradient, by program."""
    first, step = tl.program_id(0) * LARGEST_BLOCK, tl.num_programs(0) * LARGEST_BLOCK
    found = largest_gradient(upstream, strides, size, first, step, HAS_COLUMNS)
    tl.store(wide + LARGEST_BEGINS + tl.program_id(0), found)


@triton.jit
def store_side(
    own, size, given, numbers, own_side, other_side, out, flags, HAS_OWN_BIAS: tl.constexpr,
    HAS_OTHER_BIAS: tl.constexpr,
):  # fmt: skip
    """Stores the terms of one side's block.

    The sums of this side have the other side's biases, and the other way round.
    """
    inside = own < size
    is_counted = given.lse != float("-inf")
    weight = tl.where(is_counted, given.weight, 0.0)
    # Without a weight a row contributes nothing, not even NaN.
    level = tl.where(is_counted & (weight != 0), given.lse, float("inf"))
    factor, is_trusted = factor_and_trust(
        own, weight, level, given.bias, numbers, other_side, HAS_OTHER_BIAS
    )
    store_common(own, size, factor, level, is_trusted, out, flags)
    bias_factor = tl.full(own.shape, 1.0, tl.float32)
    bias = bias_factor - 1.0
    if HAS_OWN_BIAS:
        bias_factor = tl.load(own_side.factor + own, mask=inside, other=1)
        bias = tl.load(own_side.bias + own, mask=inside, other=0)
    row = tl.cast(size, tl.int64)
    tl.store(out + POSITIVE * row + own, given.positive.to(tl.float32), mask=inside)
    tl.store(out + WEIGHT * row + own, weight.to(tl.float32), mask=inside)
    tl.store(out + BIAS_FACTOR * row + own, bias_factor, mask=inside)
    tl.store(out + BIAS * row + own, bias, mask=inside)


@triton.jit
def softmax_of(logit, lse, weight):
    """weight·exp(logit − lse); 0 without a weight or a sum."""
    return tl.where((weight == 0) | (lse == float("-inf")), 0.0, weight * tl.exp(logit - lse))


@triton.jit
def target_gradients(
    i, row, target, logit, lse, upstream, strides, size, unit, HAS_COLUMNS: tl.constexpr,
    COUNTS_TARGETS: tl.constexpr,
):  # fmt: skip
    """G of the targets of the rows i over the unit; NaN for targets outside the matrix."""
    in_rows = i < size.rows
    t = tl.load(target + i, mask=in_rows, other=-1)
    names = in_rows & (t >= 0) & (t < size.columns)
    result = row.positive
    logit_i = tl.load(logit + i, mask=in_rows, other=0)
    if COUNTS_TARGETS:
        result += softmax_of(logit_i, row.lse, row.weight)
    if HAS_COLUMNS:
        result += tl.load(upstream.col_pos + t * strides.col_pos, mask=names, other=0) / unit
        if COUNTS_TARGETS:
            weight_t = tl.load(upstream.col_lse + t * strides.col_lse, mask=names, other=0) / unit
            lse_t = tl.load(lse.col + t, mask=names, other=0)
            result += softmax_of(logit_i, lse_t, weight_t)
    return tl.where(names, result, tl.where(t == -1, 0.0, float("nan")))


@triton.jit
def found_unit(
    wide, upstream, strides, size, programs, HAS_LARGEST: tl.constexpr, HAS_COLUMNS: tl.constexpr,
    IS_FLOAT16: tl.constexpr,
):  # fmt: skip
    """The unit of the upstream gradients."""
    if HAS_LARGEST:
        program = tl.arange(0, LARGEST_PROGRAMS)
        found = tl.max(
            tl.load(wide + LARGEST_BEGINS + program, mask=program < programs, other=0), 0
        )
    else:
        found = largest_gradient(upstream, strides, size, 0, LARGEST_BLOCK, HAS_COLUMNS)
    return unit_of(found, IS_FLOAT16)


@triton.jit
def matrix_numbers(
    norms, stored, scale, bias, row_side, col_side, BIASES: tl.constexpr,
    HAS_NUMBERS: tl.constexpr,
):  # fmt: skip
    """Those that the forward has stored; otherwise computed, and stored for the next launch."""
    if HAS_NUMBERS:
        result = load_numbers(stored)
    else:
        result = with_biases(numbers_of(norms, scale), bias, row_side, col_side, BIASES)
        if tl.program_id(0) == 0:
            store_numbers(stored, result)
    return result


@planned
@triton.jit
def gradient_terms_kernel(
    norms, stored, lse, upstream, strides, target, logit, scale, bias, row_side, col_side,
    memory, wide, programs, size, PAIRS: tl.constexpr, BIASES: tl.constexpr, SIDES: tl.constexpr,
    COUNT: tl.constexpr, HAS_NUMBERS: tl.constexpr, HAS_LARGEST: tl.constexpr,
    IS_FLOAT16: tl.constexpr,
):  # fmt: skip
    """IS_SYMMETRIC: rows stand for columns, because G + Gᵀ is computed."""
    HAS_OWN_COLUMNS: tl.constexpr = SIDES.HAS_COLUMNS and not SIDES.IS_SYMMETRIC
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_rows, in_columns = i < size.rows, i < size.columns
    out = terms_in(memory, size, COUNT, SIDES.IS_SYMMETRIC)
    numbers = matrix_numbers(norms, stored, scale, bias, row_side, col_side, BIASES, HAS_NUMBERS)
    unit = found_unit(
        wide, upstream, strides, size, programs, HAS_LARGEST, HAS_OWN_COLUMNS, IS_FLOAT16
    )
    if tl.program_id(0) == 0:
        tl.store(wide, unit)
        tl.store(wide + 1, unit * tl.load(scale).to(tl.float64))
        tl.store(out.counter, 0.0)
    at = i.to(tl.int64)
    row_lse = tl.load(lse.row + i, mask=in_rows, other=0)
    weight = tl.load(upstream.row_lse + at * strides.row_lse, mask=in_rows, other=0) / unit
    positive = tl.load(upstream.row_pos + at * strides.row_pos, mask=in_rows, other=0) / unit
    own = own_biases(bias, row_side, i, size.rows, BIASES.HAS_BIAS, BIASES.HAS_ROW_BIAS)
    row = SideGradients(row_lse, weight, positive, own)
    store_side(
        i, size.rows, row, numbers, row_side, col_side, out.row, out.row_flags,
        BIASES.HAS_ROW_BIAS, BIASES.HAS_COL_BIAS,
    )  # fmt: skip
    if PAIRS.HAS_TARGET:
        found = target_gradients(
            i, row, target, logit, lse, upstream, strides, size, unit, HAS_OWN_COLUMNS,
            PAIRS.DENOMINATOR != "negatives",
        )  # fmt: skip
        tl.store(out.target + i, found.to(tl.float32), mask=in_rows)
    if not SIDES.IS_SYMMETRIC:
        col_lse = tl.full([BLOCK], float("-inf"), tl.float64)
        weight, positive = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        if SIDES.HAS_COLUMNS:
            col_lse = tl.load(lse.col + i, mask=in_columns, other=0)
            weight = tl.load(upstream.col_lse + at * strides.col_lse, mask=in_columns, other=0)
            weight = weight / unit
            positive = tl.load(upstream.col_pos + at * strides.col_pos, mask=in_columns, other=0)
            positive = positive / unit
        own = own_biases(bias, col_side, i, size.columns, BIASES.HAS_BIAS, BIASES.HAS_COL_BIAS)
        store_side(
            i, size.columns, SideGradients(col_lse, weight, positive, own), numbers, col_side,
            row_side, out.col, out.col_flags, BIASES.HAS_COL_BIAS, BIASES.HAS_ROW_BIAS,
        )  # fmt: skip
