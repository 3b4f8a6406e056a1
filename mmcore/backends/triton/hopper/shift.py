"""The shared shift, and what G is multiplied by, in Gluon.

    shift = ⌈|a|·max_i ‖x_i‖·max_j ‖y_j‖·(1 + 2⁻⁸)⌉ − 80, a = scale·log2(e)
    gain = unit·scale, or upstream/(2·N)·scale

These are the numbers of softmax_similarity/shared_shift.py and gain.py, from the same operations.

Never stored: anything.
Loop order: every CTA computes them before its roles begin.
Precision: float64; results are float32, and a is in two parts.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from mmcore.backends.triton.float64 import LOG2_E_HIGH, LOG2_E_LOW
from mmcore.backends.triton.norms_and_targets import MOST_PARTS
from mmcore.backends.triton.softmax_similarity.shared_shift import (
    LARGEST_EXPONENT,
    LARGEST_ROUNDING,
    LARGEST_SHARED_BOUND,
)


@gluon.jit
def largest_norm(maxima, parts):
    """The largest row of one side, float64."""
    layout: gl.constexpr = gl.BlockedLayout([1], [32], [4], [0])
    part = gl.arange(0, MOST_PARTS, layout)
    found = gl.load(maxima + part, mask=part < parts, other=0).to(gl.int64, bitcast=True)
    return gl.sqrt(gl.max(found, 0).to(gl.float64, bitcast=True))


@gluon.jit
def shift_of(norms, scale):
    """a in two parts, and the shift."""
    factor = gl.load(scale).to(gl.float64)
    a = factor * LOG2_E_HIGH + factor * LOG2_E_LOW
    norm_x = largest_norm(norms.maxima, norms.parts)
    norm_y = largest_norm(norms.maxima + MOST_PARTS, norms.parts)
    bound = gl.abs(a) * norm_x * norm_y * LARGEST_ROUNDING
    shift = gl.where(bound <= LARGEST_SHARED_BOUND, gl.ceil(bound) - LARGEST_EXPONENT, 0.0)
    high = a.to(gl.float32)
    low = (a - high.to(gl.float64)).to(gl.float32)
    low = gl.where(gl.abs(high) == float("inf"), 0.0, low)
    return high, low, shift.to(gl.float32)


@gluon.jit
def gain_of(given, rows, IS_LOSS: gl.constexpr, IS_FLOAT16: gl.constexpr):
    """What G is multiplied by before it is rounded."""
    if IS_LOSS:
        weight = gl.load(given.upstream).to(gl.float64) / (2.0 * gl.cast(rows, gl.float64))
        gain = weight * gl.load(given.scale).to(gl.float64)
        if IS_FLOAT16:
            exponent = gl.abs(weight).to(gl.int64, bitcast=True) >> 52
            is_usable = (exponent > 0) & (exponent < 2047)
            unit = gl.where(is_usable, (exponent << 52).to(gl.float64, bitcast=True), 1.0)
            gain = weight / (unit * 0.00048828125)
    elif IS_FLOAT16:
        gain = gl.load(given.wide) * 0.0 + 1.0
    else:
        gain = gl.load(given.wide + 1)
    return gain.to(gl.float32)
