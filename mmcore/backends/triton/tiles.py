"""What the kernels of the similarity matrix share: one tile of products, and its pairs.

    products(i, j) = ⟨x_i, y_j⟩        positive, excluded = which pairs (i, j) are (ops/pairs.py)

A tile lives in registers and is never stored. Operands are multiplied in the dtype in which they
come, with float32 sums. They come by pointers or, where the GPU has a copy engine for tiles, by
tensor descriptors. An id or a target outside its range matches nothing, and no memory is read for
it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.constants import Constant

LOG2_E = Constant(1.4426950408889634)


class RowIds(NamedTuple):
    """Ids of the rows of a tile."""

    target: Any
    label: Any
    group: Any


class ColumnIds(NamedTuple):
    """Numbers and ids of the columns of a tile."""

    number: Any
    label: Any
    group: Any


@triton.jit
def load_rows(features, first, size, stride, start, ROWS: tl.constexpr, TILE: tl.constexpr):
    """ROWS rows from `first` on, BK columns of them from `start` on; zeros beyond the matrix."""
    if TILE.USES_DESCRIPTORS:
        result = features.load([first, start])
    else:
        row, k = first + tl.arange(0, ROWS), start + tl.arange(0, TILE.BK)
        inside = (row < size)[:, None]
        if TILE.DEPTH % TILE.BK != 0:
            inside = inside & (k < TILE.DEPTH)[None, :]
        at = row.to(tl.int64)[:, None] * stride + k[None, :]
        result = tl.load(features + at, mask=inside, other=0)
    return result


@triton.jit
def tile_products(x, y, first_i, first_j, end, columns, strides, TILE: tl.constexpr):
    """Products of the rows from `first_i` to `end` with the columns from `first_j` on."""
    BM: tl.constexpr = TILE.BM
    BN: tl.constexpr = TILE.BN
    products = tl.zeros([BM, BN], tl.float32)
    for start in range(0, TILE.DEPTH, TILE.BK):
        left = load_rows(x, first_i, end, strides.x, start, BM, TILE)
        right = load_rows(y, first_j, columns, strides.y, start, BN, TILE)
        if TILE.WIDENS:  # the interpreter's product takes bfloat16 for integers
            left, right = left.to(tl.float32), right.to(tl.float32)
        if left.dtype == tl.float32 and TILE.PRECISION == "ieee":
            # A sum for each chunk: one over the whole depth would round more than the vendor's.
            # As an FMA, because a sum would be folded into the product.
            chunk = tl.dot(left, tl.trans(right), input_precision=TILE.PRECISION)
            products = tl.fma(chunk, 1.0, products)
        else:
            products = tl.dot(left, tl.trans(right), products, input_precision=TILE.PRECISION)
    return products


@triton.jit
def at_tile(kept, first_i, first_j, stride, TILE: tl.constexpr):
    """Pointers to a tile of E."""
    row, column = tl.arange(0, TILE.BM).to(tl.int64)[:, None], tl.arange(0, TILE.BN)[None, :]
    in_tile = row * stride + column
    return kept + tl.cast(first_i, tl.int64) * stride + first_j + in_tile


@triton.jit
def store_kept(kept, e, first_i, first_j, stride, TILE: tl.constexpr):
    """Stores a tile of E without a mask: the memory has room for whole tiles (kept_size.py)."""
    if TILE.USES_DESCRIPTORS:
        kept.store([first_i, first_j], e.to(tl.bfloat16))
    else:
        tl.store(at_tile(kept, first_i, first_j, stride, TILE), e.to(tl.bfloat16))


@triton.jit
def load_kept(kept, first_i, first_j, stride, TILE: tl.constexpr):
    """A tile of E, float32."""
    if TILE.USES_DESCRIPTORS:
        e = kept.load([first_i, first_j])
    else:
        e = tl.load(at_tile(kept, first_i, first_j, stride, TILE))
    return e.to(tl.float32)


@triton.jit
def exponent_of(products, high, low, level_high, level_low):
    """a·product − level, each of two float32 parts; rounded as the small number that it is."""
    return tl.fma(products, high, -level_high) + tl.fma(products, low, -level_low)


@triton.jit
def exponential(products, high, low, shift, IS_PRECISE: tl.constexpr):
    """E = 2^(a·product − shift), 0 below 2⁻¹²⁶.

    A float32 exponent near 100 leaves an error of 3·10⁻⁶ in E, which 16-bit operands hide and
    float32 ones do not. For those one FMA rounds the exponent to an integer, and a second one
    leaves the exact remainder.
    """
    if IS_PRECISE:
        rounder = 12582912.0  # 1.5·2²³: a smaller number added to it is rounded to an integer
        integer = tl.fma(products, high, rounder - shift) - rounder
        rest = tl.fma(products, high, -(shift + integer)) + products * low
        power = ((integer.to(tl.int32) + 127) << 23).to(tl.float32, bitcast=True)
        result = tl.where(integer < -126, 0.0, tl.exp2(rest) * power)
        result = tl.where(products == products, result, products)
    else:
        result = tl.exp2(tl.fma(products, low, tl.fma(products, high, -shift)))
    return result


@triton.jit
def match(row_id, col_id, is_there: tl.constexpr, TILE: tl.constexpr):
    """Whether ids are equal; −1 matches nothing."""
    BM: tl.constexpr = TILE.BM
    BN: tl.constexpr = TILE.BN
    if is_there:
        result = (row_id[:, None] == col_id[None, :]) & (row_id != -1)[:, None]
    else:
        result = tl.zeros([BM, BN], tl.int1)
    return result


@triton.jit
def load_ids(ids, at, size, is_there: tl.constexpr):
    """Ids of rows or columns, −1 beyond the matrix; without ids, numbers that nobody reads."""
    if is_there:
        result = tl.load(ids + at, mask=at < size, other=-1)
    else:
        result = at
    return result


@triton.jit
def load_targets(target, i, rows, columns, PAIRS: tl.constexpr):
    """Columns, in 32 bits, which halves the registers of a tile's comparisons; −1 for no target."""
    result = i
    if PAIRS.IS_DIAGONAL:
        result = tl.where(i < rows, i, -1)
    elif PAIRS.HAS_TARGET:
        wide = tl.load(target + i, mask=i < rows, other=-1)
        result = tl.where((wide >= 0) & (wide < columns), wide, -1).to(tl.int32)
    return result


@triton.jit
def load_row_ids(ids, i, end, columns, PAIRS: tl.constexpr):
    """Ids of the rows i; of those from `end` on −1."""
    target = load_targets(ids.target, i, end, columns, PAIRS)
    label = load_ids(ids.row_label, i, end, PAIRS.HAS_LABELS)
    return RowIds(target, label, load_ids(ids.row_group, i, end, PAIRS.HAS_GROUPS))


@triton.jit
def load_col_ids(ids, j, columns, PAIRS: tl.constexpr):
    """Ids of the columns j; of those beyond the matrix −1."""
    label = load_ids(ids.col_label, j, columns, PAIRS.HAS_LABELS)
    return ColumnIds(j, label, load_ids(ids.col_group, j, columns, PAIRS.HAS_GROUPS))


@triton.jit
def positive_and_excluded(row, column, PAIRS: tl.constexpr, TILE: tl.constexpr):
    """Both masks of a tile.

    A target's own pair may be excluded, too: callers leave it out of their sums, and add it from
    float64.
    """
    in_group = match(row.group, column.group, PAIRS.HAS_GROUPS, TILE)
    if PAIRS.HAS_TARGET or PAIRS.IS_DIAGONAL:
        positive = row.target[:, None] == column.number[None, :]
    else:
        positive = match(row.label, column.label, PAIRS.HAS_LABELS, TILE) & ~in_group
    return positive, in_group


@triton.jit
def counted(positive, excluded, PAIRS: tl.constexpr):
    """The pairs that enter the denominators, whether a target names them or not."""
    if PAIRS.HAS_TARGET or PAIRS.IS_DIAGONAL:
        result = ~excluded
        if PAIRS.DENOMINATOR == "positives":
            result = result & excluded
    elif PAIRS.DENOMINATOR == "positives":
        result = positive
    elif PAIRS.DENOMINATOR == "negatives":
        result = ~(positive | excluded)
    else:
        result = ~excluded
    return result


@triton.jit
def own_pairs(i, j, first_row, end, columns, IS_SYMMETRIC: tl.constexpr):
    """Pairs that rows of a chunk store directly, and those of them right of the diagonal.

    IS_SYMMETRIC: within the square of the chunk's own rows and columns, pairs on the right of the
    diagonal are stored a second time, mirrored, and pairs on its left are not computed.
    """
    inside = (i < end)[:, None] & (j < columns)[None, :]
    is_right = inside
    if IS_SYMMETRIC:
        inside = inside & ((j < first_row)[None, :] | (j[None, :] >= i[:, None]))
        is_right = inside & (j[None, :] > i[:, None]) & (j < end)[None, :]
    return inside, is_right


@triton.jit
def store_chunk(out, g, in_chunk, i, j, chunk, stride, inside, IS_SYMMETRIC: tl.constexpr):
    """G of a tile into the chunk; where IS_SYMMETRIC G + Gᵀ, mirrored right of the diagonal."""
    end = chunk.first_row + chunk.rows
    row_of_out = out + in_chunk.to(tl.int64)[:, None] * stride
    tl.store(row_of_out + j[None, :], g, mask=inside)
    if IS_SYMMETRIC:
        at_mirrored = out + (j - chunk.first_row).to(tl.int64)[:, None] * stride + i[None, :]
        is_right = (j[:, None] > i[None, :]) & (j < end)[:, None] & (i < end)[None, :]
        tl.store(at_mirrored, tl.trans(g), mask=is_right)
