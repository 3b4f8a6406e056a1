"""Terms of G for each row and each column, computed in float64: O(N + M).

    R_i = a_i·2^(shift + largest + log2(e)·(bias + row_bias_i − row_lse_i))        C_j likewise
    target_i = c_i + d_t + a_i·exp(s_it − row_lse_i) + b_t·exp(s_it − col_lse_t), t = target(i)

a, b, c, d are the upstream gradients of row_lse, col_lse, row_pos, col_pos, and `largest` is the
largest log2(e)·col_bias_j. All four are divided by one power of two, the unit, so that G keeps its
digits in the dtype that is multiplied; products with G are multiplied by the unit afterwards.

Never stored: anything larger than O(N + M).
Loop order: a first launch finds the largest upstream gradient, which determines the unit. In the
second, a program takes BLOCK rows and as many columns.
Precision: float64. Results are stored in float32, log2(e)·lse in two parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_bits, split
from mmcore.backends.triton.softmax_similarity.log_sum_exps import own_biases

BLOCK = 128
# At most as many programs look for the largest upstream gradient, and what each takes at a time.
LARGEST_PROGRAMS, LARGEST_BLOCK = 64, 1024
# A factor of up to 2⁸⁶ times an E that was flushed to 0, below 2⁻¹²⁶, would be less than 2⁻⁴⁰.
LARGEST_TRUSTED_EXPONENT = tl.constexpr(86.0)
SMALLEST_NORMAL = tl.constexpr(2.0**-126)
# Rows of the side terms, (TERMS, N) or (TERMS, M) float32: R or C; log2(e)·lse less the side's own
# biases in two parts; the upstream gradients of lse and of positives; whether R or C is trusted;
# 2^(bias − largest); bias.
FACTOR = tl.constexpr(0)
LSE_HIGH = tl.constexpr(1)
LSE_LOW = tl.constexpr(2)
WEIGHT = tl.constexpr(3)
POSITIVE = tl.constexpr(4)
IS_TRUSTED = tl.constexpr(5)
BIAS_FACTOR = tl.constexpr(6)
BIAS = tl.constexpr(7)
TERMS = 8


@triton.jit
def largest_of(vector, size, stride, BLOCK: tl.constexpr):
    """max |vector| of this program's share."""
    largest = tl.zeros([BLOCK], tl.float64)
    for start in range(tl.program_id(0) * BLOCK, size, tl.num_programs(0) * BLOCK):
        at = start + tl.arange(0, BLOCK)
        found = tl.abs(tl.load(vector + at.to(tl.int64) * stride, mask=at < size, other=0))
        largest = tl.where(found > largest, found, largest)
    return tl.max(largest, 0)


@triton.jit
def largest_gradients_kernel(
    row_grad, col_grad, row_pos_grad, col_pos_grad, largest, any_untrusted, rows, columns,
    row_stride, col_stride, row_pos_stride, col_pos_stride, HAS_COLUMNS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest upstream gradient, by program; NaN is left to whoever meets it."""
    found = largest_of(row_grad, rows, row_stride, BLOCK)
    found = tl.maximum(found, largest_of(row_pos_grad, rows, row_pos_stride, BLOCK))
    if HAS_COLUMNS:
        found = tl.maximum(found, largest_of(col_grad, columns, col_stride, BLOCK))
        found = tl.maximum(found, largest_of(col_pos_grad, columns, col_pos_stride, BLOCK))
    tl.store(largest + tl.program_id(0), found)
    if tl.program_id(0) == 0:
        tl.store(any_untrusted, 0)


@triton.jit
def power_of_two_below(largest):
    """The largest power of two up to a float64 number; 1 for 0 and what is not finite."""
    exponent = largest.to(tl.int64, bitcast=True) >> 52
    is_usable = (exponent > 0) & (exponent < 2047)
    return tl.where(is_usable, (exponent << 52).to(tl.float64, bitcast=True), 1.0)


@triton.jit
def store_side(
    own, size, lse, weight, positive, own_bias, shared, received, lent_factor, lent_bias, out,
    RECEIVES: tl.constexpr, LENDS: tl.constexpr,
):  # fmt: skip
    """The terms of one side's block; returns whether the shared shift fails any of them.

    Biases that this side adds to the other's sums are lent, those of the other are received.
    """
    inside = own < size
    is_counted = lse != float("-inf")
    weight = tl.where(is_counted, weight, 0.0)
    # Without a weight nothing is taken of a row, not even NaN.
    level = tl.where(is_counted & (weight != 0), in_bits(lse - own_bias), float("inf"))
    exponent = tl.load(shared) - level
    if RECEIVES:
        exponent += tl.load(received)
    factor = tl.where(weight == 0, 0.0, weight * tl.exp2(exponent)).to(tl.float32)
    is_normal = (exponent <= LARGEST_TRUSTED_EXPONENT) & (tl.abs(factor) >= SMALLEST_NORMAL)
    is_trusted = ((weight == 0) | is_normal) & (tl.load(shared + 1 + own * 0) != 0)
    high, low = split(level)
    one = tl.full(own.shape, 1.0, tl.float32)
    of_lent, lent = one, one - 1.0
    if LENDS:
        of_lent = tl.load(lent_factor + own, mask=inside, other=1)
        lent = tl.load(lent_bias + own, mask=inside, other=0)
    row = tl.cast(size, tl.int64)
    tl.store(out + FACTOR * row + own, factor, mask=inside)
    tl.store(out + LSE_HIGH * row + own, high, mask=inside)
    tl.store(out + LSE_LOW * row + own, low, mask=inside)
    tl.store(out + WEIGHT * row + own, weight.to(tl.float32), mask=inside)
    tl.store(out + POSITIVE * row + own, positive.to(tl.float32), mask=inside)
    tl.store(out + IS_TRUSTED * row + own, is_trusted.to(tl.float32), mask=inside)
    tl.store(out + BIAS_FACTOR * row + own, of_lent, mask=inside)
    tl.store(out + BIAS * row + own, lent, mask=inside)
    return tl.max((inside & ~is_trusted).to(tl.int32), 0)


@triton.jit
def softmax_of(logit, lse, weight):
    """weight·exp(logit − lse); 0 without a weight or a sum."""
    return tl.where((weight == 0) | (lse == float("-inf")), 0.0, weight * tl.exp(logit - lse))


@triton.jit
def gradient_terms_kernel(
    row_lse, col_lse, row_grad, col_grad, row_pos_grad, col_pos_grad, target, logit, scale, shared,
    bias, row_bias, col_bias, row_largest, col_largest, row_factor, col_factor, largest,
    row_terms, col_terms, target_gradient, unit_and_factor, untrusted, any_untrusted,
    programs, rows, columns, row_stride, col_stride, row_pos_stride, col_pos_stride,
    DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr, HAS_COLUMNS: tl.constexpr,
    IS_SYMMETRIC: tl.constexpr, IS_FLOAT16: tl.constexpr, BLOCK: tl.constexpr,
    LARGEST_PROGRAMS: tl.constexpr,
):  # fmt: skip
    """IS_SYMMETRIC: G + Gᵀ is meant, and rows stand for columns."""
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    in_rows, in_columns = i < rows, i < columns
    program = tl.arange(0, LARGEST_PROGRAMS)
    found = tl.load(largest + program, mask=program < programs, other=0)
    unit = power_of_two_below(tl.max(found, 0))
    if IS_FLOAT16:
        # Numbers begin at 2⁻¹⁴ there, and a softmax over many columns is smaller. No entry of G,
        # nor of G + Gᵀ, reaches 16 units: 2¹¹ times as much still fits.
        unit = unit * 0.00048828125
    if tl.program_id(0) == 0:
        tl.store(unit_and_factor, unit)
        tl.store(unit_and_factor + 1, unit * tl.load(scale).to(tl.float64))
    row_at, col_at = i.to(tl.int64), i.to(tl.int64)
    lse = tl.load(row_lse + i, mask=in_rows, other=0)
    weight = tl.load(row_grad + row_at * row_stride, mask=in_rows, other=0) / unit
    positive = tl.load(row_pos_grad + row_at * row_pos_stride, mask=in_rows, other=0) / unit
    own_bias = own_biases(bias, row_bias, i, rows, HAS_BIAS, HAS_ROW_BIAS)
    is_any = store_side(
        i, rows, lse, weight, positive, own_bias, shared, col_largest, row_factor, row_bias,
        row_terms, HAS_COL_BIAS, HAS_ROW_BIAS,
    )  # fmt: skip
    tl.store(untrusted + tl.program_id(0), is_any)
    if HAS_TARGET:
        t = tl.load(target + i, mask=in_rows, other=-1)
        names = in_rows & (t >= 0) & (t < columns)
        of_target = positive
        logit_i = tl.load(logit + i, mask=in_rows, other=0)
        if DENOMINATOR != "negatives":
            of_target += softmax_of(logit_i, lse, weight)
        if HAS_COLUMNS:
            of_target += tl.load(col_pos_grad + t * col_pos_stride, mask=names, other=0) / unit
            if DENOMINATOR != "negatives":
                at_t = tl.load(col_grad + t * col_stride, mask=names, other=0) / unit
                lse_t = tl.load(col_lse + t, mask=names, other=0)
                of_target += softmax_of(logit_i, lse_t, at_t)
        of_target = tl.where(names, of_target, tl.where(t == -1, 0.0, float("nan")))
        tl.store(target_gradient + i, of_target.to(tl.float32), mask=in_rows)
    if not IS_SYMMETRIC:
        lse = tl.full([BLOCK], float("-inf"), tl.float64)
        weight, positive = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
        if HAS_COLUMNS:
            lse = tl.load(col_lse + i, mask=in_columns, other=0)
            weight = tl.load(col_grad + col_at * col_stride, mask=in_columns, other=0) / unit
            positive = tl.load(col_pos_grad + col_at * col_pos_stride, mask=in_columns, other=0)
            positive = positive / unit
        own_bias = own_biases(bias, col_bias, i, columns, HAS_BIAS, HAS_COL_BIAS)
        of_columns = store_side(
            i, columns, lse, weight, positive, own_bias, shared, row_largest, col_factor, col_bias,
            col_terms, HAS_ROW_BIAS, HAS_COL_BIAS,
        )  # fmt: skip
        tl.store(untrusted + tl.num_programs(0) + tl.program_id(0), of_columns)
        is_any = tl.maximum(is_any, of_columns)
    if is_any > 0:
        tl.atomic_max(any_untrusted, 1)
