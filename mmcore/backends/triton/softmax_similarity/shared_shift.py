"""softmax_similarity: the shared shift of exponentials, and what kernels know of the whole matrix.

    E_ij = 2^(a·⟨x_i, y_j⟩ − shift), a = scale·log2(e)
    shift = ⌈|a|·max_i ‖x_i‖·max_j ‖y_j‖·(1 + 2⁻⁸)⌉ − 80

By the Cauchy-Schwarz inequality no E exceeds 2⁸⁰. Whether the bound is small enough for a shared
shift is known on the device alone, and the host does not wait for the answer.

Never stored: norms of rows, other than the largest that each program has seen.
Loop order: norms_and_targets.py reads x and y once. Then every program of a forward derives the
shift from at most 1,024 norms, which spares a launch; the forward stores it for the backward.
Precision: float64; the kernels take the shift in float32, in which it is exact, and a, the scale
and the matrix's bias in two float32 parts each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.triton.arguments import SideBiases
from mmcore.backends.triton.constants import Constant
from mmcore.backends.triton.float64 import in_bits, split
from mmcore.backends.triton.norms_and_targets import MOST_PARTS
from mmcore.backends.triton.tiles import LOG2_E

# Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
LARGEST_SHARED_BOUND = Constant(200.0)
# The largest possible E is 2 to this: sums, and their reciprocals, stay within float32.
LARGEST_EXPONENT = Constant(80.0)
# An E below this is flushed to 0. It is at most 2⁻⁴⁰ of a sum of 2⁻⁸⁶, and contributes at most
# 2⁻⁴⁰ to a gradient whose factor is 2⁸⁶.
SMALLEST_NORMAL = Constant(2.0**-126)
SMALLEST_TRUSTED_SUM = Constant(2.0**-86)
LARGEST_TRUSTED_EXPONENT = Constant(86.0)
# Rounding to bfloat16 lengthens a row by at most one part in 256, and so the larger of two sides.
LARGEST_ROUNDING = Constant(1.00390625)


class Numbers(NamedTuple):
    """What kernels know of the whole matrix, float32."""

    high: Any  # log2(e)·scale in two parts
    low: Any
    shift: Any
    is_usable: Any  # whether one shift may serve the whole matrix: 1 or 0
    scale: Any  # two parts
    scale_low: Any
    bias: Any  # of all logits, in two parts
    bias_low: Any


@triton.jit
def largest_norm(maxima, parts):
    """The largest ‖row‖ of one side, float64."""
    part = tl.arange(0, MOST_PARTS)
    found = tl.load(maxima + part, mask=part < parts, other=0).to(tl.int64, bitcast=True)
    return tl.sqrt(tl.max(found, 0).to(tl.float64, bitcast=True))


@triton.jit
def numbers_of(norms, scale):
    """From the largest norms, without biases."""
    factor = tl.load(scale).to(tl.float64)
    a = in_bits(factor)
    norm_x = largest_norm(norms.maxima, norms.parts)
    norm_y = largest_norm(norms.maxima + MOST_PARTS, norms.parts)
    bound = tl.abs(a) * norm_x * norm_y * LARGEST_ROUNDING
    is_usable = bound <= LARGEST_SHARED_BOUND
    shift = tl.where(is_usable, tl.ceil(bound) - LARGEST_EXPONENT, 0.0).to(tl.float32)
    high, low = split(a)
    scale_high, scale_low = split(factor)
    usable = tl.where(is_usable, 1.0, 0.0).to(tl.float32)
    zero = usable * 0.0
    return Numbers(high, low, shift, usable, scale_high, scale_low, zero, zero)


@triton.jit
def with_biases(numbers, bias, row_side, col_side, BIASES: tl.constexpr):
    """With the matrix's bias; biases of rows and columns may forbid a shared shift."""
    usable, bias_high, bias_low = numbers.is_usable, numbers.bias, numbers.bias_low
    if BIASES.HAS_BIAS:
        bias_high, bias_low = split(tl.load(bias).to(tl.float64))
    if BIASES.HAS_ROW_BIAS:
        usable = usable * tl.load(row_side.are_normal).to(tl.float32)
    if BIASES.HAS_COL_BIAS:
        usable = usable * tl.load(col_side.are_normal).to(tl.float32)
    return Numbers(
        numbers.high, numbers.low, numbers.shift, usable, numbers.scale, numbers.scale_low,
        bias_high, bias_low,
    )  # fmt: skip


@triton.jit
def store_numbers(out, numbers):
    tl.store(out, numbers.high)
    tl.store(out + 1, numbers.low)
    tl.store(out + 2, numbers.shift)
    tl.store(out + 3, numbers.is_usable)
    tl.store(out + 4, numbers.scale)
    tl.store(out + 5, numbers.scale_low)
    tl.store(out + 6, numbers.bias)
    tl.store(out + 7, numbers.bias_low)


@triton.jit
def load_numbers(stored):
    """What store_numbers has stored."""
    return Numbers(
        tl.load(stored), tl.load(stored + 1), tl.load(stored + 2), tl.load(stored + 3),
        tl.load(stored + 4), tl.load(stored + 5), tl.load(stored + 6), tl.load(stored + 7),
    )  # fmt: skip


def side_biases(bias: Tensor | None, dummy: Tensor) -> SideBiases:
    """Those of one side; without them pointers that kernels do not read."""
    if bias is None:
        return SideBiases(dummy, dummy, dummy, dummy)
    bits = bias.double() * LOG2_E.value
    largest = bits.max()
    largest = torch.where(largest == -torch.inf, 0.0, largest)
    factor = torch.exp2(bits - largest).float()
    # A factor that is not normal has lost digits of its bias.
    are_normal = ((factor >= torch.finfo(torch.float32).tiny) | (bits == -torch.inf)).all()
    return SideBiases(bias.float().contiguous(), factor, largest, are_normal.double())
