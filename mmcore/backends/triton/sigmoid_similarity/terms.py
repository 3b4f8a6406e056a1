"""What the pass of a sigmoid over the matrix reads, and the totals of the sums that it stores.

    target_i = (a + c) − a·σ(−s_it), t = target(i)
    total = Σ_tiles (total + positive) + Σ_i softplus(s_it)
    positive = Σ_tiles positive + Σ_i s_it

a and c are the upstream gradients of total and positive. Both are divided by a power of two, the
unit, so that G keeps its digits in the dtype that is multiplied.

Never stored: anything larger than O(N).
Loop order: a program takes BLOCK rows; one program adds up the totals.
Precision: float64. The pass reads float32 numbers: log2(e) times scale and bias in two parts each.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_bits, split
from mmcore.backends.triton.softmax_similarity.gradient_terms import power_of_two_below

BLOCK = 1024
# float32: scale, bias, both times log2(e) in two parts each; from WEIGHTS on a and a + c.
NUMBERS, WEIGHTS = 10, 8
FIRST_WEIGHT = tl.constexpr(WEIGHTS)
# float64: the unit, and what products with G are multiplied by: scale and unit.
WIDE_NUMBERS = 2


@triton.jit
def store_numbers(numbers, wide, scale, bias, of_total, of_positive, unit):
    tl.store(numbers, scale.to(tl.float32))
    tl.store(numbers + 1, bias.to(tl.float32))
    high, low = split(in_bits(scale))
    tl.store(numbers + 2, high)
    tl.store(numbers + 3, low)
    high, low = split(in_bits(bias))
    tl.store(numbers + 4, high)
    tl.store(numbers + 5, low)
    tl.store(numbers + FIRST_WEIGHT, of_total.to(tl.float32))
    tl.store(numbers + FIRST_WEIGHT + 1, (of_total + of_positive).to(tl.float32))
    tl.store(wide, unit)
    tl.store(wide + 1, unit * scale)


@triton.jit
def sigmoid_terms_kernel(
    logit, target, scale, bias, grad_total, grad_positive, numbers, wide, at_target, parts, rows,
    HAS_TARGET: tl.constexpr, HAS_BIAS: tl.constexpr, HAS_UPSTREAM: tl.constexpr,
    IS_FLOAT16: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Without upstream gradients those of the sum of the losses: 1 and −1."""
    of_scale = tl.load(scale).to(tl.float64)
    of_bias = of_scale * 0.0
    if HAS_BIAS:
        of_bias = tl.load(bias).to(tl.float64)
    of_total, of_positive = of_scale * 0.0 + 1.0, of_scale * 0.0 - 1.0
    if HAS_UPSTREAM:
        of_total, of_positive = tl.load(grad_total), tl.load(grad_positive)
    unit = power_of_two_below(tl.maximum(tl.abs(of_total), tl.abs(of_positive)))
    if IS_FLOAT16:
        unit = unit * 0.00048828125  # as in gradient_terms.py
    of_total, of_positive = of_total / unit, of_positive / unit
    if tl.program_id(0) == 0:
        store_numbers(numbers, wide, of_scale, of_bias, of_total, of_positive, unit)
    if HAS_TARGET:
        i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
        has_target = tl.load(target + i, mask=i < rows, other=-1) != -1
        s = tl.load(logit + i, mask=i < rows, other=0)
        z = tl.exp(-tl.abs(s))
        softplus = tl.where(s > 0, s, 0.0) + tl.log(1.0 + z) + 0.0 * s  # NaN is as large as none
        complement = tl.where(s > 0, z, 1.0) / (1.0 + z)
        of_pair = of_total + of_positive - of_total * complement
        tl.store(at_target + i, of_pair.to(tl.float32), mask=i < rows)
        tl.store(parts + tl.program_id(0), tl.sum(tl.where(has_target, softplus, 0.0), 0))
        at = tl.num_programs(0) + tl.program_id(0)
        tl.store(parts + at, tl.sum(tl.where(has_target, s, 0.0), 0))


@triton.jit
def sum_of(numbers, count, stride, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(numbers + at * stride, mask=at < count, other=0)
    return tl.sum(total, 0)


@triton.jit
def sigmoid_totals_kernel(
    chunk_sums, parts, wide, total_out, positive_out, sums_out, chunks, programs,
    HAS_TARGET: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Both results, then Σ G·⟨x, y⟩ and Σ G; of sums of chunks, (chunks, 4), and of targets."""
    total = sum_of(chunk_sums, chunks, 4, BLOCK)
    positive = sum_of(chunk_sums + 1, chunks, 4, BLOCK)
    total += positive
    if HAS_TARGET:
        total += sum_of(parts, programs, 1, BLOCK)
        positive += sum_of(parts + programs, programs, 1, BLOCK)
    unit = tl.load(wide)
    tl.store(total_out, total)
    tl.store(positive_out, positive)
    tl.store(sums_out, sum_of(chunk_sums + 3, chunks, 4, BLOCK) * unit)
    tl.store(sums_out + 1, sum_of(chunk_sums + 2, chunks, 4, BLOCK) * unit)
