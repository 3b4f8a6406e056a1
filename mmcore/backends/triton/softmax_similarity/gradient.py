"""G of the softmax family, for a chunk of rows at a time.

    G_ij = [counted]·(R_i·E'_ij + C_j·E''_ij) + [positive]·(c_i + d_j)

R and C (gradient_terms.py) are the upstream gradients of the log-sum-exps divided by the sums of
exponentials, so one exponential is enough for both sides. E' is E with the biases of the columns,
E'' is E with those of the rows. Entries of targets are computed in float64 beforehand, because near
convergence they are differences of nearly equal numbers.

IS_EXACT: tiles with a row or a column too far below the bound take one exponential for each side,
exp(s − lse), whose exponent is at most 0. A second launch of a few programs looks for such tiles.

IS_SYMMETRIC, where y is x and columns have no statistics of their own: G + Gᵀ is stored, so that C
is R; targets of i and targets of j are replaced separately. Where the columns are also rows of the
chunk, half of the entries are computed, and each is stored twice. Sums by columns are of that half
only, and are added to the sums by rows.

HAS_KEPT: the forward kept E, rounded to bfloat16, and no product is computed.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: one tile a program; neighbouring programs take neighbouring rows of the same columns. In
the exact launch a program walks over several tiles.
Precision: float32; G is stored in the dtype that is multiplied. Sums are taken before G is rounded:
by rows and by columns, for the gradients of the biases, in float64; with the products, for that of
the scale, in float32 along the rows of a tile and in float64 over its rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.softmax_similarity.gradient_terms import (
    BIAS,
    BIAS_FACTOR,
    FACTOR,
    IS_TRUSTED,
    LSE_HIGH,
    LSE_LOW,
    POSITIVE,
    WEIGHT,
)
from mmcore.backends.triton.tiles import (
    LOG2_E,
    counted,
    exponent_below,
    exponential,
    load_ids,
    load_kept,
    load_targets,
    own_pairs,
    positive_and_excluded,
    store_chunk,
    tile_products,
)


@triton.jit
def load_term(terms, number: tl.constexpr, at, size, other: tl.constexpr = 0):
    return tl.load(terms + number * tl.cast(size, tl.int64) + at, mask=at < size, other=other)


@triton.jit
def side_factors(
    own_terms, other_terms, own, other, own_size, other_size, AXIS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """What E is multiplied by for the side whose vectors lie along 1 − AXIS."""
    factor = tl.expand_dims(load_term(own_terms, FACTOR, own, own_size), AXIS)
    if HAS_BIAS:
        of_other = load_term(other_terms, BIAS_FACTOR, other, other_size)
        factor = factor * tl.expand_dims(of_other, 1 - AXIS)
    return factor


@triton.jit
def exact_terms(
    products, high, low, own_terms, other_terms, own, other, own_size, other_size,
    AXIS: tl.constexpr, HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """One side's share of G by an exponential of its own."""
    level_high = tl.expand_dims(load_term(own_terms, LSE_HIGH, own, own_size), AXIS)
    level_low = tl.expand_dims(load_term(own_terms, LSE_LOW, own, own_size), AXIS)
    exponent = exponent_below(products, high, low, level_high, level_low)
    if HAS_BIAS:
        of_other = load_term(other_terms, BIAS, other, other_size) * LOG2_E
        exponent += tl.expand_dims(of_other, 1 - AXIS)
    weight = tl.expand_dims(load_term(own_terms, WEIGHT, own, own_size), AXIS)
    return tl.exp2(exponent) * weight


@triton.jit
def store_tile(
    tile_at, x, y, plan, row_terms, col_terms, target, target_gradient,
    row_label, col_label, row_group, col_group, kept, out, scale_part, row_sum, col_sum,
    first_row, chunk_rows, rows, columns, x_stride, y_stride, out_stride, kept_stride,
    DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_GROUPS: tl.constexpr, HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr, IS_SYMMETRIC: tl.constexpr, HAS_KEPT: tl.constexpr,
    IS_PRECISE: tl.constexpr, IS_EXACT: tl.constexpr, NEEDS_SUMS: tl.constexpr,
    DEPTH: tl.constexpr, WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row_blocks = tl.cdiv(chunk_rows, BM)
    block, tile = tile_at % row_blocks, tile_at // row_blocks
    in_chunk = block * BM + tl.arange(0, BM)
    i, j = first_row + in_chunk, tile * BN + tl.arange(0, BN)
    first_i, first_j, end = first_row + block * BM, tile * BN, first_row + chunk_rows
    high, low, shift = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    inside, is_right = own_pairs(i, j, first_row, end, columns, IS_SYMMETRIC)
    if HAS_KEPT and not IS_EXACT:
        e = load_kept(kept, first_i, first_j, kept_stride, USES_DESCRIPTORS, BM, BN)
    else:
        products = tile_products(
            x, y, first_i, first_j, end, columns, x_stride, y_stride, DEPTH, WIDENS,
            PRECISION, USES_DESCRIPTORS, BM, BN, BK,
        )  # fmt: skip
    if IS_EXACT:
        of_row = exact_terms(
            products, high, low, row_terms, col_terms, i, j, rows, columns, 1, HAS_COL_BIAS
        )
    else:
        of_row = side_factors(row_terms, col_terms, i, j, rows, columns, 1, HAS_COL_BIAS)
    of_col = tl.zeros([1, BN], tl.float32)
    if HAS_COLUMNS and IS_EXACT:
        of_col = exact_terms(
            products, high, low, col_terms, row_terms, j, i, columns, rows, 0, HAS_ROW_BIAS
        )
    elif HAS_COLUMNS:
        of_col = side_factors(col_terms, row_terms, j, i, columns, rows, 0, HAS_ROW_BIAS)
    target_i = load_targets(target, i, end, columns, HAS_TARGET)
    positive, excluded = positive_and_excluded(
        target_i, load_ids(row_label, i, end, HAS_LABELS), load_ids(row_group, i, end, HAS_GROUPS),
        j, load_ids(col_label, j, columns, HAS_LABELS), load_ids(col_group, j, columns, HAS_GROUPS),
        HAS_TARGET, HAS_LABELS, HAS_GROUPS, BM, BN,
    )  # fmt: skip
    if IS_SYMMETRIC and HAS_TARGET:
        target_j = load_targets(target, j, columns, rows, HAS_TARGET)
        mirrored = target_j[None, :] == i[:, None]
        of_row, of_col = tl.where(positive, 0.0, of_row), tl.where(mirrored, 0.0, of_col)
    g = of_row + of_col
    if HAS_KEPT and not IS_EXACT:
        g = e * g
    elif not IS_EXACT:
        g = exponential(products, high, low, shift, IS_PRECISE) * g
    g = tl.where(counted(positive, excluded, DENOMINATOR, HAS_TARGET), g, 0.0)
    if HAS_TARGET:
        at_i = tl.load(target_gradient + i, mask=i < end, other=0)[:, None]
        if IS_SYMMETRIC:
            at_j = tl.load(target_gradient + j, mask=j < columns, other=0)[None, :]
            g += tl.where(positive, at_i, 0.0) + tl.where(mirrored, at_j, 0.0)
        else:
            g = tl.where(positive, at_i, g)
    if HAS_LABELS:
        of_positive = load_term(row_terms, POSITIVE, i, rows)[:, None]
        of_positive = of_positive + load_term(col_terms, POSITIVE, j, columns)[None, :]
        g = tl.where(positive, g + of_positive, g)
    store_chunk(out, g, in_chunk, i, j, first_row, end, out_stride, inside, IS_SYMMETRIC)
    g = tl.where(inside, g, 0.0)
    if NEEDS_SUMS:
        at_row = tile.to(tl.int64) * chunk_rows + in_chunk
        at_column = block.to(tl.int64) * columns + j
        of_columns = tl.where(is_right, g, 0.0) if IS_SYMMETRIC else g
        tl.store(row_sum + at_row, tl.sum(g.to(tl.float64), 1), mask=i < end)
        tl.store(col_sum + at_column, tl.sum(of_columns.to(tl.float64), 0), mask=j < columns)
    if IS_SYMMETRIC:
        g = tl.where(is_right, 2.0 * g, g)
    if not (HAS_KEPT and not IS_EXACT):
        tl.store(scale_part + tile_at, tl.sum(tl.sum(g * products, 1).to(tl.float64)))


@triton.jit
def is_own_tile(
    tile_at, row_terms, col_terms, first_row, chunk_rows, rows, columns, IS_SYMMETRIC: tl.constexpr,
    IS_EXACT: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
):  # fmt: skip
    """Whether a launch computes a tile: the exact one those that the shared shift fails."""
    row_blocks = tl.cdiv(chunk_rows, BM)
    first_i = first_row + tile_at % row_blocks * BM
    first_j = tile_at // row_blocks * BN
    i, j = first_i + tl.arange(0, BM), first_j + tl.arange(0, BN)
    row_trusted = tl.min(load_term(row_terms, IS_TRUSTED, i, rows, 1)) > 0
    is_trusted = row_trusted & (tl.min(load_term(col_terms, IS_TRUSTED, j, columns, 1)) > 0)
    result = is_trusted != IS_EXACT
    if IS_SYMMETRIC:
        result = result & ~((first_j >= first_row) & (first_j + BN <= first_i))
    return result


@triton.jit
def store_gradient_kernel(
    x, y, plan, row_terms, col_terms, any_untrusted, target, target_gradient,
    row_label, col_label, row_group, col_group, kept, out, scale_part, row_sum, col_sum,
    first_row, chunk_rows, rows, columns, x_stride, y_stride, out_stride, kept_stride,
    DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_GROUPS: tl.constexpr, HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr, IS_SYMMETRIC: tl.constexpr, HAS_KEPT: tl.constexpr,
    IS_PRECISE: tl.constexpr, IS_EXACT: tl.constexpr, NEEDS_SUMS: tl.constexpr,
    DEPTH: tl.constexpr, WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """A program a tile; where IS_EXACT a few programs, which seldom find any."""
    own, step = tl.program_id(0), tl.num_programs(0)
    end = own + 1
    if IS_EXACT:
        tiles = tl.cdiv(chunk_rows, BM) * tl.cdiv(columns, BN)
        end = tl.where(tl.load(any_untrusted) == 0, 0, tiles)
    for tile_at in range(own, end, step):
        if is_own_tile(
            tile_at, row_terms, col_terms, first_row, chunk_rows, rows, columns, IS_SYMMETRIC,
            IS_EXACT, BM, BN,
        ):  # fmt: skip
            store_tile(
                tile_at, x, y, plan, row_terms, col_terms, target, target_gradient, row_label,
                col_label, row_group, col_group, kept, out, scale_part, row_sum, col_sum, first_row,
                chunk_rows, rows, columns, x_stride, y_stride, out_stride, kept_stride, DENOMINATOR,
                HAS_TARGET, HAS_LABELS, HAS_GROUPS, HAS_ROW_BIAS, HAS_COL_BIAS, HAS_COLUMNS,
                IS_SYMMETRIC, HAS_KEPT, IS_PRECISE, IS_EXACT, NEEDS_SUMS, DEPTH, WIDENS,
                PRECISION, USES_DESCRIPTORS, BM, BN, BK,
            )  # fmt: skip
