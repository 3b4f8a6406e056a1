"""The largest norms of both sides, and the logits that targets name: O((N + M)·D).

    norm_x = max_i ‖x_i‖²        norm_y = max_j ‖y_j‖²
    logit_i = scale·⟨x_i, y_target(i)⟩ + biases
    tally_j = Σ_{i: target(i) = j} (2³² + i)

The upper half of a tally counts the rows that name the column. Where it is 1, the lower half is the
number of that row, and no program has to search all targets for it. A target of −1 names nothing.
For a target outside the matrix nothing is read, and its logit is NaN.

Never stored: an N×M mask of the positives, and norms of single rows. Each program stores the
largest norms that it has seen, and whoever needs the largest of all reads these (shared_shift.py).
Loop order: a program takes ROWS rows of x and as many of y, walks their columns, and goes on to
later rows; there are at most MOST_PARTS programs.
Precision: float64. The tally is a sum of integers, so that the order of its atomic operations
changes nothing. Norms are compared as the integers that have their bits: NaN is the largest.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.constants import Constant
from mmcore.backends.triton.launch_plan import planned

MOST_PARTS = Constant(512)


@triton.jit
def load_wide(features, row, in_rows, stride, start, depth, COLUMNS: tl.constexpr):
    """Rows of features in float64; zeros beyond `in_rows`."""
    k = start + tl.arange(0, COLUMNS)[None, :]
    at = features + row.to(tl.int64)[:, None] * stride + k
    return tl.load(at, mask=in_rows[:, None] & (k < depth), other=0).to(tl.float64)


@triton.jit
def add_to_tally(tally, i, j, names):
    tl.atomic_add(tally + j, i.to(tl.int64) + 4294967296, mask=names)


@planned
@triton.jit
def tally_kernel(target, tally, rows, columns, ROWS: tl.constexpr):
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    j = tl.load(target + i, mask=i < rows, other=-1)
    add_to_tally(tally, i, j, (j >= 0) & (j < columns))


class Purpose(NamedTuple):
    """What the kernel finds besides the norms of x."""

    HAS_Y: bool
    TALLIES: bool
    HAS_COUNTER: bool  # whether a later launch needs a counter that is 0
    CLEARS: bool  # whether it also needs zeros for the rows


@triton.jit
def bits_of(squares):
    """Integers that compare as the numbers do, NaN being the largest."""
    return squares.to(tl.int64, bitcast=True) & 9223372036854775807


@planned
@triton.jit
def norms_and_targets_kernel(
    x, y, target, scale, biases, maxima, tally, zeros, size, depth, strides,
    PURPOSE: tl.constexpr, PAIRS: tl.constexpr, BIASES: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    """Behind the largest norms of x and of y are the logits, and the counter behind these."""
    program, step = tl.program_id(0), tl.num_programs(0) * ROWS
    logit = maxima + 2 * MOST_PARTS
    HAS_LOGITS: tl.constexpr = PAIRS.HAS_TARGET or PAIRS.IS_DIAGONAL
    if PURPOSE.HAS_COUNTER:
        tl.store(logit + size.rows, 0.0, mask=program == 0)
    bits_x, bits_y = tl.zeros([ROWS], tl.int64), tl.zeros([ROWS], tl.int64)
    end = size.rows
    if PURPOSE.HAS_Y:
        end = tl.maximum(end, size.columns)
    for first in range(program * ROWS, end, step):
        i = first + tl.arange(0, ROWS)
        in_rows, in_columns = i < size.rows, i < size.columns
        squares_x, squares_y = tl.zeros([ROWS], tl.float64), tl.zeros([ROWS], tl.float64)
        target_logit = tl.zeros([ROWS], tl.float64)
        j, names = i.to(tl.int64), in_rows & in_columns
        if PAIRS.HAS_TARGET:
            j = tl.load(target + i, mask=in_rows, other=-1)
            names = in_rows & (j >= 0) & (j < size.columns)
        for start in range(0, depth, COLUMNS):
            left = load_wide(x, i, in_rows, strides.x, start, depth, COLUMNS)
            squares_x += tl.sum(left * left, 1)
            if PURPOSE.HAS_Y:
                right = load_wide(y, i, in_columns, strides.y, start, depth, COLUMNS)
                squares_y += tl.sum(right * right, 1)
            if HAS_LOGITS:
                right = load_wide(y, j, names, strides.y, start, depth, COLUMNS)
                target_logit += tl.sum(left * right, 1)
        bits_x = tl.maximum(bits_x, bits_of(squares_x))
        bits_y = tl.maximum(bits_y, bits_of(squares_y))
        if PURPOSE.CLEARS:
            tl.store(zeros + i, 0.0, mask=in_rows)
        if PURPOSE.TALLIES:
            add_to_tally(tally, i, j, names)
        if HAS_LOGITS:
            target_logit = target_logit * tl.load(scale).to(tl.float64)
            if BIASES.HAS_BIAS:
                target_logit += tl.load(biases.scalar).to(tl.float64)
            if BIASES.HAS_ROW_BIAS:
                target_logit += tl.load(biases.row + i, mask=in_rows, other=0).to(tl.float64)
            if BIASES.HAS_COL_BIAS:
                target_logit += tl.load(biases.col + j, mask=names, other=0).to(tl.float64)
            found = tl.where(names | (j == -1), target_logit, float("nan"))
            tl.store(logit + i, found, mask=in_rows)
    tl.store(maxima + program, tl.max(bits_x, 0).to(tl.float64, bitcast=True))
    if not PURPOSE.HAS_Y:
        bits_y = bits_x
    tl.store(maxima + MOST_PARTS + program, tl.max(bits_y, 0).to(tl.float64, bitcast=True))
