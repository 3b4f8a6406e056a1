"""Where the terms of G are in memory, and those that every kernel of G reads: O(N + M).

    R_i = weight_i·2^(shift + largest + log2(e)·(bias − lse_i))        C_j likewise

Never stored: anything larger than O(N + M).
Loop order: each block of rows, or of columns, by itself.
Precision: float64. Results are stored in float32, lse in two parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton import kept_size
from mmcore.backends.triton.constants import Constant
from mmcore.backends.triton.float64 import in_bits, split
from mmcore.backends.triton.softmax_similarity.shared_shift import (
    LARGEST_TRUSTED_EXPONENT,
    SMALLEST_NORMAL,
)

# Float32 numbers of a row or column, each of (N,) or (M,): R or C; lse in two parts; whether R or C
# is trusted. Those of a loss end here. Of statistics also the upstream gradients of positives and
# of lse; 2^(bias − largest); bias.
FACTOR = Constant(0)
LSE_HIGH = Constant(1)
LSE_LOW = Constant(2)
IS_TRUSTED = Constant(3)
POSITIVE = Constant(4)
WEIGHT = Constant(5)
BIAS_FACTOR = Constant(6)
BIAS = Constant(7)
TERMS = 8
# Rows, or columns, that share a flag. The sides of every tile are multiples of it.
FLAGGED = Constant(kept_size.FLAGGED)
# The counter of last_block.py, and what aligns the numbers behind it.
HEADER = Constant(kept_size.HEADER)


class GradientTerms(NamedTuple):
    """What the kernels of G read, as parts of one memory of float32 numbers."""

    counter: Any
    row: Any  # (TERMS, N)
    col: Any  # (TERMS, M); those of the rows where the matrix is its own transpose
    target: Any  # (N,): G of the targets
    row_flags: Any  # whether the shared shift fails in FLAGGED rows: 1 or 0
    col_flags: Any


@triton.jit
def terms_in(memory, size, COUNT: tl.constexpr, IS_HALF: tl.constexpr):
    """Where the terms are. IS_HALF: rows stand for columns."""
    rows, columns = tl.cast(size.rows, tl.int64), tl.cast(size.columns, tl.int64)
    row = memory + HEADER
    col = row + COUNT * rows
    target = col + COUNT * columns
    row_flags = target + rows
    col_flags = row_flags + tl.cdiv(rows, FLAGGED)
    if IS_HALF:
        col, col_flags = row, row_flags
    return GradientTerms(memory, row, col, target, row_flags, col_flags)


@triton.jit
def factor_and_trust(own, weight, level, bias, numbers, other_side, HAS_OTHER_BIAS: tl.constexpr):
    """R or C of a block, float32, and whether the shared shift serves them."""
    exponent = numbers.shift.to(tl.float64) - in_bits(level - bias)
    if HAS_OTHER_BIAS:
        exponent += tl.load(other_side.largest)
    factor = tl.where(weight == 0, 0.0, weight * tl.exp2(exponent)).to(tl.float32)
    is_normal = (exponent <= LARGEST_TRUSTED_EXPONENT) & (tl.abs(factor) >= SMALLEST_NORMAL)
    is_usable = own * 0 + numbers.is_usable != 0  # a level may be infinite
    return factor, ((weight == 0) | is_normal) & is_usable


@triton.jit
def store_common(own, size, factor, level, is_trusted, out, flags):
    """The terms that every kernel of G reads, and the flags of a block."""
    inside = own < size
    high, low = split(level)
    row = tl.cast(size, tl.int64)
    tl.store(out + FACTOR * row + own, factor, mask=inside)
    tl.store(out + LSE_HIGH * row + own, high, mask=inside)
    tl.store(out + LSE_LOW * row + own, low, mask=inside)
    tl.store(out + IS_TRUSTED * row + own, is_trusted.to(tl.float32), mask=inside)
    SIZE: tl.constexpr = own.shape[0]
    fails = tl.reshape((inside & ~is_trusted).to(tl.float32), [SIZE // FLAGGED, FLAGGED])
    group = tl.min(own, 0) // FLAGGED + tl.arange(0, SIZE // FLAGGED)
    tl.store(flags + group, tl.max(fails, 1), mask=group * FLAGGED < size)
