"""What the kernels of the similarity matrix share: one tile of products, and its pairs.

    products(i, j) = ⟨x_i, y_j⟩        positive, excluded = which pairs (i, j) are (ops/pairs.py)

A tile lives in registers and is never stored. Sums of products are float32; operands are multiplied
as they are, and come by pointers or, where the GPU copies tiles by itself, by tensor descriptors.
Ids are read as they come, so an id or a target outside its range matches nothing and reaches no
memory.
"""

from __future__ import annotations

import triton
import triton.language as tl

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def load_rows(
    features, first, size, stride, start, DEPTH: tl.constexpr, USES_DESCRIPTORS: tl.constexpr,
    ROWS: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """ROWS rows from `first` on, BK columns of them from `start` on; zeros beyond the matrix."""
    if USES_DESCRIPTORS:
        result = features.load([first, start])
    else:
        row, k = first + tl.arange(0, ROWS), start + tl.arange(0, BK)
        inside = (row < size)[:, None]
        if DEPTH % BK != 0:
            inside = inside & (k < DEPTH)[None, :]
        at = row.to(tl.int64)[:, None] * stride + k[None, :]
        result = tl.load(features + at, mask=inside, other=0)
    return result


@triton.jit
def tile_products(
    x, y, first_i, first_j, rows, columns, x_stride, y_stride,
    DEPTH: tl.constexpr, WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    products = tl.zeros([BM, BN], tl.float32)
    for start in range(0, DEPTH, BK):
        left = load_rows(x, first_i, rows, x_stride, start, DEPTH, USES_DESCRIPTORS, BM, BK)
        right = load_rows(y, first_j, columns, y_stride, start, DEPTH, USES_DESCRIPTORS, BN, BK)
        if WIDENS:  # the interpreter's product takes bfloat16 for integers
            left, right = left.to(tl.float32), right.to(tl.float32)
        if left.dtype == tl.float32 and PRECISION == "ieee":
            # A sum for each chunk: one over the whole depth would round more than the vendor's.
            # As an FMA, because a sum would be folded into the product.
            chunk = tl.dot(left, tl.trans(right), input_precision=PRECISION)
            products = tl.fma(chunk, 1.0, products)
        else:
            products = tl.dot(left, tl.trans(right), products, input_precision=PRECISION)
    return products


@triton.jit
def at_tile(kept, first_i, first_j, stride, BM: tl.constexpr, BN: tl.constexpr):
    in_tile = tl.arange(0, BM).to(tl.int64)[:, None] * stride + tl.arange(0, BN)[None, :]
    return kept + tl.cast(first_i, tl.int64) * stride + first_j + in_tile


@triton.jit
def store_kept(
    kept, e, first_i, first_j, stride, USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    """A tile of E, of which nothing is masked: kept_exponentials.py has room for whole tiles."""
    if USES_DESCRIPTORS:
        kept.store([first_i, first_j], e.to(tl.bfloat16))
    else:
        tl.store(at_tile(kept, first_i, first_j, stride, BM, BN), e.to(tl.bfloat16))


@triton.jit
def load_kept(
    kept, first_i, first_j, stride, USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr,
    BN: tl.constexpr,
):  # fmt: skip
    if USES_DESCRIPTORS:
        e = kept.load([first_i, first_j])
    else:
        e = tl.load(at_tile(kept, first_i, first_j, stride, BM, BN))
    return e.to(tl.float32)


@triton.jit
def exponent_of(products, high, low, level_high, level_low):
    """a·product − level, each of two float32 parts; rounded as the small number that it is."""
    return tl.fma(products, high, -level_high) + tl.fma(products, low, -level_low)


@triton.jit
def exponent_below(products, high, low, level_high, level_low):
    """As above, of any size.

    Beyond float32's integers a level is the rounded a·product of some pair. What the rounding took
    could be hundreds then, so that it must be taken from every product.
    """
    exact = exponent_of(products, high, low, level_high, level_low)
    rounded = tl.fma(products, high, 0.0) - level_high - level_low
    return tl.where(tl.abs(level_high) < 4194304.0, exact, rounded)


@triton.jit
def exponential(products, high, low, shift, IS_PRECISE: tl.constexpr):
    """E = 2^(a·product − shift), 0 below 2⁻¹²⁶.

    A float32 exponent near 100 leaves 3·10⁻⁶ in E, which 16-bit operands hide and float32 ones do
    not: one FMA then rounds the exponent to an integer, and a second leaves the exact remainder.
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
def match(row_id, col_id, is_there: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """Whether ids are equal; −1 matches nothing."""
    if is_there:
        result = (row_id[:, None] == col_id[None, :]) & (row_id != -1)[:, None]
    else:
        result = tl.zeros([BM, BN], tl.int1)
    return result


@triton.jit
def load_ids(ids, at, size, is_there: tl.constexpr):
    """Ids of rows or columns, −1 beyond the matrix; anything where there are none."""
    if is_there:
        result = tl.load(ids + at, mask=at < size, other=-1)
    else:
        result = at
    return result


@triton.jit
def load_targets(target, i, rows, columns, is_there: tl.constexpr):
    """Columns, in 32 bits, which halves what a tile's comparisons hold; −1 for what is none."""
    if is_there:
        wide = tl.load(target + i, mask=i < rows, other=-1)
        result = tl.where((wide >= 0) & (wide < columns), wide, -1).to(tl.int32)
    else:
        result = i
    return result


@triton.jit
def positive_and_excluded(
    target, row_label, row_group, j, col_label, col_group,
    HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr, HAS_GROUPS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """A target's own pair may be excluded too: callers take it out, and add it from float64."""
    in_group = match(row_group, col_group, HAS_GROUPS, BM, BN)
    if HAS_TARGET:
        positive = target[:, None] == j[None, :]
    else:
        positive = match(row_label, col_label, HAS_LABELS, BM, BN) & ~in_group
    return positive, in_group


@triton.jit
def counted(positive, excluded, DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr):
    """The pairs that enter the denominators, whether a target names them or not."""
    if HAS_TARGET:
        result = ~excluded
        if DENOMINATOR == "positives":
            result = result & excluded
    elif DENOMINATOR == "positives":
        result = positive
    elif DENOMINATOR == "negatives":
        result = ~(positive | excluded)
    else:
        result = ~excluded
    return result


@triton.jit
def own_pairs(i, j, first_row, end, columns, IS_SYMMETRIC: tl.constexpr):
    """Pairs that rows of a chunk store directly, and those of them right of the diagonal.

    Where IS_SYMMETRIC those on the right, within the chunk's own square, are stored mirrored too,
    and what is left of the diagonal there is left to them.
    """
    inside = (i < end)[:, None] & (j < columns)[None, :]
    is_right = inside
    if IS_SYMMETRIC:
        inside = inside & ((j < first_row)[None, :] | (j[None, :] >= i[:, None]))
        is_right = inside & (j[None, :] > i[:, None]) & (j < end)[None, :]
    return inside, is_right


@triton.jit
def store_chunk(
    out, g, in_chunk, i, j, first_row, end, out_stride, inside, IS_SYMMETRIC: tl.constexpr
):
    """G of a tile into the chunk; where IS_SYMMETRIC G + Gᵀ, mirrored right of the diagonal."""
    row_of_out = out + in_chunk.to(tl.int64)[:, None] * out_stride
    tl.store(row_of_out + j[None, :], g, mask=inside)
    if IS_SYMMETRIC:
        at_mirrored = out + (j - first_row).to(tl.int64)[:, None] * out_stride + i[None, :]
        is_right = (j[:, None] > i[None, :]) & (j < end)[:, None] & (i < end)[None, :]
        tl.store(at_mirrored, tl.trans(g), mask=is_right)
