"""Logits in two float32 parts, for logits without a useful bound.

    high + low = scale·⟨x_i, y_j⟩ + (bias + (row_bias_i + col_bias_j)), |low| ≤ half a digit of high

Forward and backward find the same bits. A log-sum-exp whose largest logit is far above the others
is that logit, however large it is, and the softmax is 1. One float32 part has no digits left for
differences between large logits, and rounds them apart.

Never stored: the logits.
Precision: float32, by error-free sums and products (Knuth's two-sum; FMA), 50 bits of both parts.
Where the sum is infinite, the low part is 0.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.tiles import LOG2_E


@triton.jit
def two_sum(a, b):
    """a + b, rounded, and what the rounding left out."""
    total = a + b
    of_b = total - a
    rest = (a - (total - of_b)) + (b - of_b)
    return total, tl.where(tl.abs(total) == float("inf"), 0.0, rest)


@triton.jit
def wide_logits(products, numbers, row_bias, col_bias):
    """Both parts of a tile of logits; the numbers are those of the matrix (shared_shift.py).

    The biases are (BM, 1) and (1, BN), float32, in nats.
    """
    bias, rest = two_sum(row_bias, col_bias)
    bias, more = two_sum(bias, numbers.bias)
    rest += more + numbers.bias_low
    scaled = tl.fma(products, numbers.scale, 0.0)
    of_product = tl.fma(products, numbers.scale_low, tl.fma(products, numbers.scale, -scaled))
    of_product = tl.where(tl.abs(scaled) == float("inf"), 0.0, of_product)
    total, more = two_sum(scaled, bias)
    high, low = two_sum(total, more + (of_product + rest))
    # A float64 number, such as a log-sum-exp, must hold both parts: digits below 2⁻⁵⁰ are rounded.
    coarse = high * 1.4901161193847656e-08  # 2⁻²⁶
    return high, tl.where(tl.abs(high) == float("inf"), 0.0, (low + coarse) - coarse)


@triton.jit
def exponential_of(high, low, level_high, level_low):
    """exp of the difference of two numbers in two parts each."""
    return tl.exp2(((high - level_high) + (low - level_low)) * LOG2_E)
