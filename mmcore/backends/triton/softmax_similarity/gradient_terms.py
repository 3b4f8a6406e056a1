"""Terms of G for each row and each column, computed in float64: O(N + M).

    R_i = a_i·2^(shift + largest + log2(e)·(bias + row_bias_i − row_lse_i))        C_j likewise
    target_i = c_i + d_t + a_i·exp(s_it − row_lse_i) + b_t·exp(s_it − col_lse_t), t = target(i)

a, b, c, d are the upstream gradients of row_lse, col_lse, row_pos, col_pos, and `largest` is the
largest log2(e)·col_bias_j. All four are divided by one power of two, the unit (float64.py), so that
G keeps its digits in the dtype that is multiplied. Products with G are multiplied by the unit
afterwards.

Never stored: anything larger than O(N + M).
Loop order: a first launch finds the largest upstream gradient, which determines the unit. In the
second, a program takes BLOCK rows and as many columns.
Precision: float64. Results are stored in float32, lse in two parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_bits, split, unit_of
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.log_sum_exps import own_biases
from mmcore.backends.triton.softmax_similarity.shared_shift import (
    LARGEST_TRUSTED_EXPONENT,
    SMALLEST_NORMAL,
)

BLOCK = tl.constexpr(128)
# At most as many programs look for the largest upstream gradient, in blocks of this size.
LARGEST_PROGRAMS, LARGEST_BLOCK = tl.constexpr(64), tl.constexpr(1024)
# Rows of the side terms, (TERMS, N) or (TERMS, M) float32: R or C; lse in two parts; the upstream
# gradients of lse and of positives; whether R or C is trusted; 2^(bias − largest); bias.
FACTOR = tl.constexpr(0)
LSE_HIGH = tl.constexpr(1)
LSE_LOW = tl.constexpr(2)
WEIGHT = tl.constexpr(3)
POSITIVE = tl.constexpr(4)
IS_TRUSTED = tl.constexpr(5)
BIAS_FACTOR = tl.constexpr(6)
BIAS = tl.constexpr(7)
TERMS = 8


class Upstream(NamedTuple):
    """Upstream gradients of the statistics, float64; or their strides."""

    row_lse: Any
    col_lse: Any
    row_pos: Any
    col_pos: Any


class GradientTerms(NamedTuple):
    """What the kernels of G read; all on the device."""

    row: Any  # (TERMS, N) float32
    col: Any  # (TERMS, M) float32
    target: Any  # (N,) float32: G of the targets
    unit_and_factor: Any  # (2,) float64: the unit, and unit·scale
    untrusted: Any  # (2, blocks) int32: whether the shared shift fails in a block of rows, columns
    any_untrusted: Any  # 0-D int32


class SideGradients(NamedTuple):
    """Log-sum-exps of a block of one side, and the upstream gradients over the unit; float64."""

    lse: Any
    weight: Any  # of lse
    positive: Any  # of pos
    bias: Any  # that all logits of a row, or column, share


@triton.jit
def largest_of(vector, size, stride):
    """max |vector| of this program's share."""
    largest = tl.zeros([LARGEST_BLOCK], tl.float64)
    step = tl.num_programs(0) * LARGEST_BLOCK
    for start in range(tl.program_id(0) * LARGEST_BLOCK, size, step):
        at = start + tl.arange(0, LARGEST_BLOCK)
        found = tl.abs(tl.load(vector + at.to(tl.int64) * stride, mask=at < size, other=0))
        largest = tl.where(found > largest, found, largest)
    return tl.max(largest, 0)


@planned
@triton.jit
def largest_gradients_kernel(
    upstream, strides, largest, any_untrusted, size, HAS_COLUMNS: tl.constexpr
):
    """The largest upstream gradient, by program. NaN does not count: it spoils its own rows."""
    found = largest_of(upstream.row_lse, size.rows, strides.row_lse)
    found = tl.maximum(found, largest_of(upstream.row_pos, size.rows, strides.row_pos))
    if HAS_COLUMNS:
        found = tl.maximum(found, largest_of(upstream.col_lse, size.columns, strides.col_lse))
        found = tl.maximum(found, largest_of(upstream.col_pos, size.columns, strides.col_pos))
    tl.store(largest + tl.program_id(0), found)
    if tl.program_id(0) == 0:
        tl.store(any_untrusted, 0)


@triton.jit
def store_side(
    own, size, given, shared, own_side, other_side, out, HAS_OWN_BIAS: tl.constexpr,
    HAS_OTHER_BIAS: tl.constexpr,
):  # fmt: skip
    """Stores the terms of one side's block; returns whether the shared shift fails any of them.

    The sums of this side have the other side's biases, and the other way round.
    """
    inside = own < size
    is_counted = given.lse != float("-inf")
    weight = tl.where(is_counted, given.weight, 0.0)
    # Without a weight a row contributes nothing, not even NaN.
    level = tl.where(is_counted & (weight != 0), given.lse, float("inf"))
    exponent = tl.load(shared) - in_bits(level - given.bias)
    if HAS_OTHER_BIAS:
        exponent += tl.load(other_side.largest)
    factor = tl.where(weight == 0, 0.0, weight * tl.exp2(exponent)).to(tl.float32)
    is_normal = (exponent <= LARGEST_TRUSTED_EXPONENT) & (tl.abs(factor) >= SMALLEST_NORMAL)
    is_trusted = ((weight == 0) | is_normal) & (tl.load(shared + 1 + own * 0) != 0)
    high, low = split(level)
    bias_factor = tl.full(own.shape, 1.0, tl.float32)
    bias = bias_factor - 1.0
    if HAS_OWN_BIAS:
        bias_factor = tl.load(own_side.factor + own, mask=inside, other=1)
        bias = tl.load(own_side.bias + own, mask=inside, other=0)
    row = tl.cast(size, tl.int64)
    tl.store(out + FACTOR * row + own, factor, mask=inside)
    tl.store(out + LSE_HIGH * row + own, high, mask=inside)
    tl.store(out + LSE_LOW * row + own, low, mask=inside)
    tl.store(out + WEIGHT * row + own, weight.to(tl.float32), mask=inside)
    tl.store(out + POSITIVE * row + own, given.positive.to(tl.float32), mask=inside)
    tl.store(out + IS_TRUSTED * row + own, is_trusted.to(tl.float32), mask=inside)
    tl.store(out + BIAS_FACTOR * row + own, bias_factor, mask=inside)
    tl.store(out + BIAS * row + own, bias, mask=inside)
    return tl.max((inside & ~is_trusted).to(tl.int32), 0)


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


@planned
@triton.jit
def gradient_terms_kernel(
    lse, upstream, strides, target, logit, scale, shared, bias, row_side, col_side, largest, out,
    programs, size, PAIRS: tl.constexpr, BIASES: tl.constexpr, SIDES: tl.constexpr,
    IS_FLOAT16: tl.constexpr,
):  # fmt: skip
    """IS_SYMMETRIC: rows stand for columns, because G + Gᵀ is computed."""
    HAS_OWN_COLUMNS: tl.constexpr = SIDES.HAS_COLUMNS and not SIDES.IS_SYMMETRIC
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_rows, in_columns = i < size.rows, i < size.columns
    program = tl.arange(0, LARGEST_PROGRAMS)
    found = tl.load(largest + program, mask=program < programs, other=0)
    unit = unit_of(tl.max(found, 0), IS_FLOAT16)
    if tl.program_id(0) == 0:
        tl.store(out.unit_and_factor, unit)
        tl.store(out.unit_and_factor + 1, unit * tl.load(scale).to(tl.float64))
    at = i.to(tl.int64)
    row_lse = tl.load(lse.row + i, mask=in_rows, other=0)
    weight = tl.load(upstream.row_lse + at * strides.row_lse, mask=in_rows, other=0) / unit
    positive = tl.load(upstream.row_pos + at * strides.row_pos, mask=in_rows, other=0) / unit
    own = own_biases(bias, row_side, i, size.rows, BIASES.HAS_BIAS, BIASES.HAS_ROW_BIAS)
    row = SideGradients(row_lse, weight, positive, own)
    is_any = store_side(
        i, size.rows, row, shared, row_side, col_side, out.row, BIASES.HAS_ROW_BIAS,
        BIASES.HAS_COL_BIAS,
    )  # fmt: skip
    tl.store(out.untrusted + tl.program_id(0), is_any)
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
        columns = store_side(
            i, size.columns, SideGradients(col_lse, weight, positive, own), shared, col_side,
            row_side, out.col, BIASES.HAS_COL_BIAS, BIASES.HAS_ROW_BIAS,
        )  # fmt: skip
        tl.store(out.untrusted + tl.num_programs(0) + tl.program_id(0), columns)
        is_any = tl.maximum(is_any, columns)
    if is_any > 0:
        tl.atomic_max(out.any_untrusted, 1)
