"""What a pass of sigmoid_similarity reads, and the totals of the sums that it stores.

    target_i = (a + c) − a·σ(−s_it), t = target(i)
    total = Σ_tiles (total + positive) + Σ_i softplus(s_it)
    positive = Σ_tiles positive + Σ_i s_it

a and c are the upstream gradients of total and positive. Both are divided by a power of two, the
unit (float64.py), so that G keeps its digits in the dtype that is multiplied.

Never stored: anything larger than O(N).
Loop order: a program takes BLOCK rows; one program adds up the totals.
Precision: float64. The pass reads float32 numbers: log2(e) times scale and bias in two parts each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_bits, split, unit_of
from mmcore.backends.triton.launch_plan import planned

BLOCK = tl.constexpr(1024)
# float32: scale, bias, both times log2(e) in two parts each; from WEIGHTS on a and a + c.
NUMBERS, WEIGHTS = 10, 8
FIRST_WEIGHT = tl.constexpr(WEIGHTS)
# float64: the unit, and the factor of products with G: scale times unit.
WIDE_NUMBERS = 2


class Terms(NamedTuple):
    """What the pass over the matrix reads; all on the device."""

    numbers: Any  # (NUMBERS,) float32
    wide: Any  # (WIDE_NUMBERS,) float64
    at_target: Any  # (N,) float32: G of the targets
    parts: Any  # (2, programs) float64: sums of softplus and of logits of targets


class Totals(NamedTuple):
    """What one pass over the matrix adds up to, float64."""

    total: Any  # 0-D
    positive: Any  # 0-D
    sums: Any  # (2,): Σ G·⟨x, y⟩ and Σ G


@triton.jit
def store_numbers(out, scale, bias, grad_total, grad_positive, unit):
    tl.store(out.numbers, scale.to(tl.float32))
    tl.store(out.numbers + 1, bias.to(tl.float32))
    high, low = split(in_bits(scale))
    tl.store(out.numbers + 2, high)
    tl.store(out.numbers + 3, low)
    high, low = split(in_bits(bias))
    tl.store(out.numbers + 4, high)
    tl.store(out.numbers + 5, low)
    tl.store(out.numbers + FIRST_WEIGHT, grad_total.to(tl.float32))
    tl.store(out.numbers + FIRST_WEIGHT + 1, (grad_total + grad_positive).to(tl.float32))
    tl.store(out.wide, unit)
    tl.store(out.wide + 1, unit * scale)


@planned
@triton.jit
def sigmoid_terms_kernel(
    logit, target, scale, bias, upstream, out, rows, HAS_TARGET: tl.constexpr,
    HAS_BIAS: tl.constexpr, HAS_UPSTREAM: tl.constexpr, IS_FLOAT16: tl.constexpr,
):  # fmt: skip
    """Without upstream gradients, those of the sum of the losses: 1 and −1."""
    scale = tl.load(scale).to(tl.float64)
    bias_of_all = scale * 0.0
    if HAS_BIAS:
        bias_of_all = tl.load(bias).to(tl.float64)
    grad_total, grad_positive = scale * 0.0 + 1.0, scale * 0.0 - 1.0
    if HAS_UPSTREAM:
        grad_total, grad_positive = tl.load(upstream.total), tl.load(upstream.positive)
    unit = unit_of(tl.maximum(tl.abs(grad_total), tl.abs(grad_positive)), IS_FLOAT16)
    grad_total, grad_positive = grad_total / unit, grad_positive / unit
    if tl.program_id(0) == 0:
        store_numbers(out, scale, bias_of_all, grad_total, grad_positive, unit)
    if HAS_TARGET:
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        has_target = tl.load(target + i, mask=i < rows, other=-1) != -1
        s = tl.load(logit + i, mask=i < rows, other=0)
        z = tl.exp(-tl.abs(s))
        softplus = tl.where(s > 0, s, 0.0) + tl.log(1.0 + z) + 0.0 * s  # NaN where s is NaN
        complement = tl.where(s > 0, z, 1.0) / (1.0 + z)
        g = grad_total + grad_positive - grad_total * complement
        tl.store(out.at_target + i, g.to(tl.float32), mask=i < rows)
        tl.store(out.parts + tl.program_id(0), tl.sum(tl.where(has_target, softplus, 0.0), 0))
        at = tl.num_programs(0) + tl.program_id(0)
        tl.store(out.parts + at, tl.sum(tl.where(has_target, s, 0.0), 0))


@triton.jit
def sum_of(numbers, count, stride):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(numbers + at * stride, mask=at < count, other=0)
    return tl.sum(total, 0)


@planned
@triton.jit
def sigmoid_totals_kernel(chunk_sums, parts, wide, out, chunks, programs, HAS_TARGET: tl.constexpr):
    """Adds up the sums of chunks, (chunks, 4), and those of targets, (2, programs)."""
    total = sum_of(chunk_sums, chunks, 4)
    positive = sum_of(chunk_sums + 1, chunks, 4)
    total += positive
    if HAS_TARGET:
        total += sum_of(parts, programs, 1)
        positive += sum_of(parts + programs, programs, 1)
    unit = tl.load(wide)
    tl.store(out.total, total)
    tl.store(out.positive, positive)
    tl.store(out.sums, sum_of(chunk_sums + 3, chunks, 4) * unit)
    tl.store(out.sums + 1, sum_of(chunk_sums + 2, chunks, 4) * unit)
