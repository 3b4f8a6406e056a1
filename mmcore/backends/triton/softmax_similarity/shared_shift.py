"""softmax_similarity: the shared shift of exponentials, and what kernels know of the whole matrix.

    E_ij = 2^(a·⟨x_i, y_j⟩ − shift), a = scale·log2(e)
    shift = ⌈|a|·max_i ‖x_i‖·max_j ‖y_j‖·(1 + 2⁻⁸)⌉ − 80

By the Cauchy-Schwarz inequality no E exceeds 2⁸⁰. Whether the bound is small enough for a shared
shift is stored beside it on the device, and the host does not wait for the answer.

Never stored: norms of rows, other than the largest of each side.
Loop order: norms_and_targets.py reads x and y once. Then one program computes the shift.
Precision: float64; the kernels read the shift in float32, and a, the scale and the matrix's bias in
two float32 parts each.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton.arguments import SideBiases
from mmcore.backends.triton.float64 import in_bits, split
from mmcore.backends.triton.inputs import pointer
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.norms_and_targets import NORM_OF_X, NORM_OF_Y, norms_and_logits
from mmcore.backends.triton.softmax_similarity.wide_logits import BIAS, SCALE
from mmcore.backends.triton.tiles import LOG2_E

# Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
LARGEST_SHARED_BOUND = tl.constexpr(200.0)
# The largest possible E is 2 to this: sums, and their reciprocals, stay within float32.
LARGEST_EXPONENT = tl.constexpr(80.0)
# An E below this is flushed to 0. It is at most 2⁻⁴⁰ of a sum of 2⁻⁸⁶, and contributes at most
# 2⁻⁴⁰ to a gradient whose factor is 2⁸⁶.
SMALLEST_NORMAL = tl.constexpr(2.0**-126)
SMALLEST_TRUSTED_SUM = tl.constexpr(2.0**-86)
LARGEST_TRUSTED_EXPONENT = tl.constexpr(86.0)
# Rounding to bfloat16 lengthens a row by at most one part in 256, and so the larger of two sides.
LARGEST_ROUNDING = tl.constexpr(1.00390625)


@triton.jit
def store_split(out, wide):
    high, low = split(wide)
    tl.store(out, high)
    tl.store(out + 1, low)


@planned
@triton.jit
def shared_shift_kernel(
    tally, scale, bias, numbers, shared, HAS_Y: tl.constexpr, HAS_BIAS: tl.constexpr
):
    """Runs as one program, on scalars."""
    factor = tl.load(scale).to(tl.float64)
    a = in_bits(factor)
    norm_x = tl.sqrt(tl.load(tally + NORM_OF_X).to(tl.float64, bitcast=True))
    norm_y = norm_x
    if HAS_Y:
        norm_y = tl.sqrt(tl.load(tally + NORM_OF_Y).to(tl.float64, bitcast=True))
    bound = tl.abs(a) * norm_x * norm_y * LARGEST_ROUNDING
    is_usable = bound <= LARGEST_SHARED_BOUND
    shift = tl.where(is_usable, tl.ceil(bound) - LARGEST_EXPONENT, 0.0)
    store_split(numbers, a)
    tl.store(numbers + 2, shift.to(tl.float32))
    store_split(numbers + SCALE, factor)
    own_bias = factor * 0.0
    if HAS_BIAS:
        own_bias = tl.load(bias).to(tl.float64)
    store_split(numbers + BIAS, own_bias)
    tl.store(shared, shift)
    tl.store(shared + 1, tl.where(is_usable, 1.0, 0.0).to(tl.float64))


class SharedShift(NamedTuple):
    """What the kernels know of the whole matrix, all on the device."""

    # (7,) float32: log2(e)·scale in two parts, shift, scale and bias in two parts each
    numbers: Tensor
    shared: Tensor  # (2,) float64: shift, and whether one may serve the whole matrix
    tally: Tensor  # (2 + M,) int64: norms_and_targets.py
    logits: Tensor  # (N,) float64, of the targets; anything where there is no target
    row_side: SideBiases
    col_side: SideBiases


def shared_shift(inputs: SimilarityInputs, tallies: bool = False) -> SharedShift:
    """That of one matrix; `tallies` if columns need to know which rows name them."""
    x = inputs.x
    tally, logits = norms_and_logits(inputs, needs_norms=True, tallies=tallies)
    numbers, shared = x.new_empty(7, dtype=torch.float32), x.new_empty(2, dtype=torch.float64)
    shared_shift_kernel[(1,)](
        tally, inputs.scale, pointer(inputs.bias, x), numbers, shared, HAS_Y=inputs.y is not None,
        HAS_BIAS=inputs.bias is not None, num_warps=1,
    )  # fmt: skip
    row_side = side_biases(inputs.row_bias, shared)
    col_side = row_side if inputs.y is None else side_biases(inputs.col_bias, shared)
    return SharedShift(numbers, shared, tally, logits, row_side, col_side)


def side_biases(bias: Tensor | None, shared: Tensor) -> SideBiases:
    """Those of one side; where factors lose digits of biases, `shared` is marked unusable."""
    if bias is None:
        return SideBiases(shared, shared, shared)  # dummy pointers
    bits = bias.double() * LOG2_E.value
    largest = bits.max()
    largest = torch.where(largest == -torch.inf, 0.0, largest)
    factor = torch.exp2(bits - largest).float()
    are_normal = ((factor >= torch.finfo(torch.float32).tiny) | (bits == -torch.inf)).all()
    shared[1] *= are_normal
    return SideBiases(bias.float().contiguous(), factor, largest)
