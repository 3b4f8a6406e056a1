"""What G is multiplied by before it is rounded, so that its products are gradients.

    gain = unit·scale                    given an upstream gradient of each statistic
    gain = upstream/(2·N)·scale          of a mean loss, whose G is that of 2·N times the loss

Normal float16 numbers begin at 2⁻¹⁴. There the gain leaves out unit·scale, the factor by which
products with G are multiplied afterwards; the unit is a power of two (float64.py).

Never stored: anything larger than two numbers.
Loop order: every program computes it from single numbers.
Precision: float64; the gain is rounded to float32.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import unit_of


class Given(NamedTuple):
    """What the gain is computed from."""

    upstream: Any  # of the loss, 0-D
    scale: Any  # 0-D
    wide: Any  # (2,) float64: the unit, and unit·scale


@triton.jit
def gain_of(given, rows, IS_LOSS: tl.constexpr, IS_FLOAT16: tl.constexpr):
    """The gain, float32, and what sums of G with products are to be multiplied by, float64."""
    if IS_LOSS:
        weight = tl.load(given.upstream).to(tl.float64) / (2.0 * tl.cast(rows, tl.float64))
        factor = weight * tl.load(given.scale).to(tl.float64)
        gain = factor
        if IS_FLOAT16:
            unit = unit_of(tl.abs(weight), IS_FLOAT16)
            gain = weight / unit
            if tl.program_id(0) == 0:
                tl.store(given.wide, unit)
                tl.store(given.wide + 1, unit * tl.load(given.scale).to(tl.float64))
    else:
        weight = tl.load(given.wide)
        gain = weight * 0.0 + 1.0
        if not IS_FLOAT16:
            gain = tl.load(given.wide + 1)
    return gain.to(tl.float32), weight
