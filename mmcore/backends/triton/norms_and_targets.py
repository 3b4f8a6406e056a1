"""The largest norms of both sides, and the logits that targets name: O((N + M)·D).

    norm_x = max_i ‖x_i‖²        norm_y = max_j ‖y_j‖²
    logit_i = scale·⟨x_i, y_target(i)⟩ + biases
    tally_j = Σ_{i: target(i) = j} (2³² + i)

The upper half of a tally counts the rows that name the column. Where it is 1, the lower half is the
number of that row, and no program has to search all targets for it. A target of −1 names nothing.
For a target outside the matrix nothing is read, and its logit is NaN.

Never stored: an N×M mask of the positives.
Loop order: a program takes ROWS rows of x and as many of y, and walks their columns.
Precision: float64. The tally is a sum of integers, and the largest norms are compared as the
integers that have their bits, so that the order of the atomic operations changes nothing.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton.arguments import Size
from mmcore.backends.triton.inputs import (
    biases,
    ids,
    rounds_operands,
    shape,
    strides,
    which_biases,
)
from mmcore.backends.triton.launch import row_tile
from mmcore.backends.triton.launch_plan import planned

# Where the largest norms stand in the tally, before the columns' numbers.
NORM_OF_X = tl.constexpr(0)
NORM_OF_Y = tl.constexpr(1)
NORMS = 2
COLUMNS_BEGIN = tl.constexpr(NORMS)


@triton.jit
def load_wide(
    features, row, in_rows, stride, start, depth, ROUNDS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Rows of features in float64, after the rounding of the products; zeros beyond `in_rows`."""
    k = start + tl.arange(0, COLUMNS)[None, :]
    at = features + row.to(tl.int64)[:, None] * stride + k
    found = tl.load(at, mask=in_rows[:, None] & (k < depth), other=0)
    if ROUNDS:
        found = found.to(tl.bfloat16)
    return found.to(tl.float64)


@triton.jit
def add_to_tally(tally, i, j, names):
    tl.atomic_add(tally + COLUMNS_BEGIN + j, i.to(tl.int64) + 4294967296, mask=names)


@planned
@triton.jit
def tally_kernel(target, tally, rows, columns, ROWS: tl.constexpr):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.load(target + i, mask=i < rows, other=-1)
    add_to_tally(tally, i, j, (j >= 0) & (j < columns))


class Purpose(NamedTuple):
    """What the kernel finds besides logits of targets, and of what."""

    HAS_TARGET: bool
    HAS_Y: bool
    NEEDS_NORMS: bool
    TALLIES: bool
    ROUNDS: bool  # whether operands are rounded to bfloat16


@planned
@triton.jit
def norms_and_targets_kernel(
    x, y, target, scale, biases, tally, logit, size, depth, strides, PURPOSE: tl.constexpr,
    BIASES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    in_rows, in_columns = i < size.rows, i < size.columns
    target_logit = tl.zeros([ROWS], tl.float64)
    squares_x, squares_y = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
    if PURPOSE.HAS_TARGET:
        j = tl.load(target + i, mask=in_rows, other=-1)
        names = in_rows & (j >= 0) & (j < size.columns)
    for start in range(0, depth, COLUMNS):
        left = load_wide(x, i, in_rows, strides.x, start, depth, PURPOSE.ROUNDS, COLUMNS)
        if PURPOSE.HAS_TARGET:
            right = load_wide(y, j, names, strides.y, start, depth, PURPOSE.ROUNDS, COLUMNS)
            target_logit += tl.sum(left * right, 1)
        if PURPOSE.NEEDS_NORMS:
            squares_x += tl.sum(left * left, 1)
            if PURPOSE.HAS_Y:
                right = load_wide(
                    y, i, in_columns, strides.y, start, depth, PURPOSE.ROUNDS, COLUMNS
                )
                squares_y += tl.sum(right * right, 1)
    if PURPOSE.NEEDS_NORMS:
        tl.atomic_max(tally + NORM_OF_X, tl.max(squares_x, 0).to(tl.int64, bitcast=True))
        if PURPOSE.HAS_Y:
            tl.atomic_max(tally + NORM_OF_Y, tl.max(squares_y, 0).to(tl.int64, bitcast=True))
    if PURPOSE.HAS_TARGET:
        if PURPOSE.TALLIES:
            add_to_tally(tally, i, j, names)
        target_logit = target_logit * tl.load(scale).to(tl.float64)
        if BIASES.HAS_BIAS:
            target_logit += tl.load(biases.scalar).to(tl.float64)
        if BIASES.HAS_ROW_BIAS:
            target_logit += tl.load(biases.row + i, mask=in_rows, other=0).to(tl.float64)
        if BIASES.HAS_COL_BIAS:
            target_logit += tl.load(biases.col + j, mask=names, other=0).to(tl.float64)
        found = tl.where(names | (j == -1), target_logit, float("nan"))
        tl.store(logit + i, found, mask=in_rows)


def norms_and_logits(
    inputs: SimilarityInputs, needs_norms: bool, tallies: bool
) -> tuple[Tensor, Tensor]:
    """The tally, and float64 logits of targets, biases included; what is not wanted is empty."""
    x, y, has_target = inputs.x, inputs.keys, inputs.target is not None
    (rows, columns), depth = shape(inputs), x.shape[1]
    purpose = Purpose(
        has_target, inputs.y is not None, needs_norms, tallies and has_target,
        rounds_operands(inputs),
    )  # fmt: skip
    counted = NORMS + columns if purpose.TALLIES else NORMS if needs_norms else 0
    tally = x.new_zeros(counted, dtype=torch.int64)
    logits = x.new_empty(rows if has_target else 0, dtype=torch.float64)
    tile = row_tile(depth)
    programs = triton.cdiv(max(rows, columns if purpose.HAS_Y else 0), tile.ROWS)
    norms_and_targets_kernel[(programs,)](
        x, y, ids(inputs).target, inputs.scale, biases(inputs), tally, logits, Size(rows, columns),
        depth, strides(inputs), PURPOSE=purpose, BIASES=which_biases(inputs), **tile._asdict(),
    )  # fmt: skip
    return tally, logits
