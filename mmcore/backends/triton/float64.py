"""float64 arithmetic of single numbers in kernels, for work that is O(N + M).

Triton may take a constant for float32, even beside a float64 number. So each constant is split into
a float32 number and the remainder, and the two products are added.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.constants import Constant

LOG2_E_HIGH = Constant(1.4426950216293335)
LOG2_E_LOW = Constant(1.9259629911266175e-8)
LN_2_HIGH = Constant(0.6931471824645996)
LN_2_LOW = Constant(-1.904654299957768e-9)


@triton.jit
def in_bits(nats):
    """log2(e)·nats, float64."""
    return nats * LOG2_E_HIGH + nats * LOG2_E_LOW


@triton.jit
def in_nats(bits):
    """ln(2)·bits, float64."""
    return bits * LN_2_HIGH + bits * LN_2_LOW


@triton.jit
def split(wide):
    """A float64 number as the sum of two float32 ones; the second is 0 beside an infinite one."""
    high = wide.to(tl.float32)
    low = (wide - high.to(tl.float64)).to(tl.float32)
    return high, tl.where(tl.abs(high) == float("inf"), 0.0, low)


@triton.jit
def log_add_exp(a, b):
    """log(exp(a) + exp(b)); −∞ where both are −∞."""
    are_equal = a == b
    larger = tl.where(a > b, a, b)
    apart = tl.abs(a - tl.where(are_equal, 0.0, b))  # ∞ − ∞ is NaN
    sum_of_both = larger + tl.log(1.0 + tl.exp(-apart))
    return tl.where(are_equal, a + LN_2_HIGH + LN_2_LOW, sum_of_both)


@triton.jit
def power_of_two_below(largest):
    """The largest power of two up to a float64 number; 1 for 0 and what is not finite."""
    exponent = largest.to(tl.int64, bitcast=True) >> 52
    is_usable = (exponent > 0) & (exponent < 2047)
    return tl.where(is_usable, (exponent << 52).to(tl.float64, bitcast=True), 1.0)


@triton.jit
def unit_of(largest, IS_FLOAT16: tl.constexpr):
    """The power of two by which gradients are divided whose largest is given.

    Normal float16 numbers begin at 2⁻¹⁴, and a softmax over many columns is smaller. No entry of G,
    nor of G + Gᵀ, reaches 16 units: 2¹¹ times as much still fits.
    """
    unit = power_of_two_below(largest)
    if IS_FLOAT16:
        unit = unit * 0.00048828125
    return unit
