"""The shared shift of the exponentials, and the logits that targets name: the launches.

    E_ij = 2^(a·⟨x_i, y_j⟩ − shift), a = scale·log2(e)
    shift = ⌈|a|·max_i ‖x_i‖·max_j ‖y_j‖·(1 + 2⁻⁸)⌉ − 80

By the Cauchy-Schwarz inequality no E exceeds 2⁸⁰. Whether the bound is small enough for a shared
shift is stored beside it on the device, and the host does not wait for the answer.

Never stored: norms of rows, other than the largest of each side.
Loop order: norms_and_targets.py reads x and y once. Then one program computes the shift.
Precision: float64; the kernels read the shift in float32, and a in two float32 parts.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.triton.float64 import in_bits, split
from mmcore.backends.triton.inputs import Matrix
from mmcore.backends.triton.launch import row_tile
from mmcore.backends.triton.norms_and_targets import (
    NORM_OF_X,
    NORM_OF_Y,
    NORMS,
    norms_and_targets_kernel,
)

LOG2_E = 1.0 / math.log(2)
# Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
LARGEST_SHARED_BOUND = tl.constexpr(200.0)
# The largest possible E is 2 to this: sums, and their reciprocals, stay within float32.
LARGEST_EXPONENT = tl.constexpr(80.0)
# Rounding to bfloat16 lengthens a row by at most one part in 256, and so the larger of two sides.
LARGEST_ROUNDING = tl.constexpr(1.00390625)


@triton.jit
def plan_kernel(tally, scale, numbers, shared, HAS_Y: tl.constexpr):
    """Runs as one program, on scalars."""
    a = in_bits(tl.load(scale).to(tl.float64))
    of_x = tl.sqrt(tl.load(tally + NORM_OF_X).to(tl.float64, bitcast=True))
    of_y = of_x
    if HAS_Y:
        of_y = tl.sqrt(tl.load(tally + NORM_OF_Y).to(tl.float64, bitcast=True))
    bound = tl.abs(a) * of_x * of_y * LARGEST_ROUNDING
    is_usable = bound <= LARGEST_SHARED_BOUND
    shift = tl.where(is_usable, tl.ceil(bound) - LARGEST_EXPONENT, 0.0)
    high, low = split(a)
    tl.store(numbers, high)
    tl.store(numbers + 1, low)
    tl.store(numbers + 2, shift.to(tl.float32))
    tl.store(shared, shift)
    tl.store(shared + 1, tl.where(is_usable, 1.0, 0.0).to(tl.float64))


class Plan(NamedTuple):
    """What the kernels know of the whole matrix, all on the device."""

    numbers: Tensor  # (3,) float32: log2(e)·scale in two parts, shift
    shared: Tensor  # (2,) float64: shift, and whether one may serve the whole matrix
    tally: Tensor  # (2 + M,) int64: norms_and_targets.py
    logits: Tensor  # (N,) float64, of the targets; of those that are −1 anything
    rows: BiasFactors
    columns: BiasFactors

    @staticmethod
    def of(matrix: Matrix, tallies: bool = False) -> Plan:
        """Of one matrix; `tallies` where columns ask which rows name them."""
        x = matrix.x
        tally, logits = norms_and_logits(matrix, needs_norms=True, tallies=tallies)
        numbers, shared = x.new_empty(3, dtype=torch.float32), x.new_empty(2, dtype=torch.float64)
        plan_kernel[(1,)](
            tally, matrix.scale, numbers, shared, HAS_Y=matrix.y is not None, num_warps=1
        )
        rows = BiasFactors.of(matrix.row_bias, x)
        columns = rows if matrix.y is None else BiasFactors.of(matrix.col_bias, x)
        for side in (rows, columns):
            if side.are_normal is not None:
                shared[1] *= side.are_normal
        return Plan(numbers, shared, tally, logits, rows, columns)


def norms_and_logits(matrix: Matrix, needs_norms: bool, tallies: bool) -> tuple[Tensor, Tensor]:
    """The tally, and float64 logits of targets, every bias included; empty what is not wanted."""
    x, y, has_target = matrix.x, matrix.keys, matrix.target is not None
    (rows, columns), depth = matrix.shape, x.shape[1]
    tallies = tallies and has_target
    counted = NORMS + columns if tallies else NORMS if needs_norms else 0
    tally = x.new_zeros(counted, dtype=torch.int64)
    logits = x.new_empty(rows if has_target else 0, dtype=torch.float64)
    tile, has_y = row_tile(depth), matrix.y is not None
    norms_and_targets_kernel[(triton.cdiv(max(rows, columns if has_y else 0), tile.ROWS),)](
        x, y, matrix.ids()[0], matrix.scale, *matrix.biases(), tally, logits,
        rows, columns, depth, x.stride(0), y.stride(0),
        HAS_TARGET=has_target, HAS_Y=has_y, NEEDS_NORMS=needs_norms, TALLIES=tallies,
        ROUNDS=matrix.rounds, **matrix.which_biases(), **tile._asdict(),
    )  # fmt: skip
    return tally, logits


class BiasFactors(NamedTuple):
    """2^(bias − largest) ≤ 1 of one side, float32, and log2(e)·largest; None where none is."""

    bias: Tensor | None = None  # in nats, float32
    factor: Tensor | None = None
    largest: Tensor | None = None  # 0-D float64
    are_normal: Tensor | None = None  # whether every finite bias kept its digits

    @staticmethod
    def of(bias: Tensor | None, like: Tensor) -> BiasFactors:
        """Of the biases of one side."""
        if bias is None:
            return BiasFactors()
        bits = bias.double() * LOG2_E
        largest = bits.max()
        largest = torch.where(largest == -torch.inf, 0.0, largest)
        factor = torch.exp2(bits - largest).float()
        are_normal = ((factor >= torch.finfo(torch.float32).tiny) | (bits == -torch.inf)).all()
        return BiasFactors(bias.float(), factor, largest, are_normal)
