"""Gradients of the loss of SigLIP from what its forward cached for an upstream gradient of 1.

    grad_x = g·scale·unit/N·kept_x        grad_y = g·scale·unit/N·kept_y
    grad_scale = g·kept_sums_0            grad_bias = g·kept_sums_1

g is the upstream gradient of the loss. kept_x is G·y and kept_y is Gᵀ·x, for a = 1 and c = −1,
divided by the unit (float64.py), which is 1 but for float16 features.

Never stored: the logits and G, which this kernel does not compute.
Loop order: a program takes BLOCK numbers of x and as many of y; the first one also the scalars.
Precision: the factor is formed in float64; float32 products with it, each rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import unit_of
from mmcore.backends.triton.launch_plan import planned

NUMBERS, NUM_WARPS = 4096, 8


class SiglipGradients(NamedTuple):
    """Where they are stored; any pointer for one that is not wanted."""

    x: Any
    y: Any
    scale: Any
    bias: Any


class Stored(NamedTuple):
    """Which gradients are wanted."""

    X: bool
    Y: bool
    SCALE: bool
    BIAS: bool


@triton.jit
def store_rounded(out, wide):
    """A float64 number: by float32 into 16 bits, which the interpreter has no other way into."""
    if out.dtype.element_ty == tl.float64:
        tl.store(out, wide)
    else:
        tl.store(out, wide.to(tl.float32))


@planned
@triton.jit
def siglip_gradients_kernel(
    kept, kept_sums, upstream, scale, grads, size, rows, STORED: tl.constexpr,
    IS_FLOAT16: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    g, scale = tl.load(upstream).to(tl.float64), tl.load(scale).to(tl.float64)
    unit = unit_of(scale * 0.0 + 1.0, IS_FLOAT16)
    by = (g * scale * unit / tl.cast(rows, tl.float64)).to(tl.float32)
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    if STORED.X:
        tl.store(grads.x + at, tl.load(kept + at, mask=inside, other=0) * by, mask=inside)
    if STORED.Y:
        of_y = kept + size
        tl.store(grads.y + at, tl.load(of_y + at, mask=inside, other=0) * by, mask=inside)
    if tl.program_id(0) == 0:
        if STORED.SCALE:
            store_rounded(grads.scale, g * tl.load(kept_sums))
        if STORED.BIAS:
            store_rounded(grads.bias, g * tl.load(kept_sums + 1))
