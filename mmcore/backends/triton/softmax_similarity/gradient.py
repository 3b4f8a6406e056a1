"""G of the softmax family, for a chunk of rows at a time.

    G_ij = [counted]·(R_i·E'_ij + C_j·E''_ij) + [positive]·(c_i + d_j)

R and C (gradient_terms.py) are the upstream gradients of the log-sum-exps divided by the sums of
exponentials, so one exponential is enough for both sides. E' is E with the biases of the columns,
E'' is E with those of the rows. Entries of targets are computed in float64 beforehand, because near
convergence they are differences of nearly equal numbers.

IS_EXACT: tiles with a row or a column too far below the bound take one exponential for each side,
exp(s − lse), whose exponent is at most 0. A second launch of a few programs looks for such tiles.

IS_SYMMETRIC, where y is x and columns have no statistics of their own: G + Gᵀ is stored, so that C
is R, and targets of i and targets of j are replaced separately. Where the columns are also rows of
the chunk, half of the entries are computed, and each is stored twice. Sums by columns cover that
half only, and are added to the sums by rows.

HAS_KEPT: the forward kept E, rounded to bfloat16, and no product is computed.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: one tile a program; neighbouring programs take neighbouring rows of the same columns. In
the exact launch a program walks over several tiles.
Precision: float32; G is stored in the dtype that is multiplied. Sums are taken before G is rounded:
by rows and by columns, for the gradients of the biases, in float64; with the products, for that of
the scale, in float32 along the rows of a tile and in float64 over its rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned
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
from mmcore.backends.triton.softmax_similarity.wide_logits import exponential_of, wide_logits
from mmcore.backends.triton.tiles import (
    counted,
    exponential,
    load_col_ids,
    load_kept,
    load_row_ids,
    load_targets,
    own_pairs,
    positive_and_excluded,
    store_chunk,
    tile_products,
)


class GradientSums(NamedTuple):
    """Sums of G, float64: with products (tiles,), by rows (tiles, rows), by columns (blocks, M)."""

    scale: Any
    row: Any
    col: Any


class Form(NamedTuple):
    """Which tiles a launch computes, and how."""

    HAS_KEPT: bool  # whether the forward kept E
    IS_EXACT: bool  # whether these are the tiles that the shared shift fails
    NEEDS_SUMS: bool  # whether the gradients of biases are wanted


@triton.jit
def load_term(terms, number: tl.constexpr, at, size, other: tl.constexpr = 0):
    return tl.load(terms + number * tl.cast(size, tl.int64) + at, mask=at < size, other=other)


@triton.jit
def side_factors(
    own_terms, other_terms, own, other, own_size, other_size, AXIS: tl.constexpr,
    HAS_BIAS: tl.constexpr,
):  # fmt: skip
    """The factors of E for the side whose vectors lie along 1 − AXIS."""
    factor = tl.expand_dims(load_term(own_terms, FACTOR, own, own_size), AXIS)
    if HAS_BIAS:
        bias_factor = load_term(other_terms, BIAS_FACTOR, other, other_size)
        factor = factor * tl.expand_dims(bias_factor, 1 - AXIS)
    return factor


@triton.jit
def biases_of(terms, own, size, HAS_BIAS: tl.constexpr):
    """Those of rows, or of columns, in nats."""
    result = tl.zeros(own.shape, tl.float32)
    if HAS_BIAS:
        result = load_term(terms, BIAS, own, size)
    return result


@triton.jit
def exact_terms(high, low, terms, own, size, AXIS: tl.constexpr):
    """One side's share of G by an exponential of its own, of logits in two parts."""
    level_high = tl.expand_dims(load_term(terms, LSE_HIGH, own, size), AXIS)
    level_low = tl.expand_dims(load_term(terms, LSE_LOW, own, size), AXIS)
    weight = tl.expand_dims(load_term(terms, WEIGHT, own, size), AXIS)
    return exponential_of(high, low, level_high, level_low) * weight


@triton.jit
def store_tile(
    tile_at, x, y, numbers, terms, ids, kept, out, sums, chunk, size, strides,
    PAIRS: tl.constexpr, SIDES: tl.constexpr, FORM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = TILE.BM
    BN: tl.constexpr = TILE.BN
    row_blocks, rows, columns = tl.cdiv(chunk.rows, BM), size.rows, size.columns
    block, tile = tile_at % row_blocks, tile_at // row_blocks
    in_chunk = block * BM + tl.arange(0, BM)
    i, j = chunk.first_row + in_chunk, tile * BN + tl.arange(0, BN)
    first_i, first_j = chunk.first_row + block * BM, tile * BN
    end = chunk.first_row + chunk.rows
    high, low, shift = tl.load(numbers), tl.load(numbers + 1), tl.load(numbers + 2)
    inside, is_right = own_pairs(i, j, chunk.first_row, end, columns, SIDES.IS_SYMMETRIC)
    if FORM.HAS_KEPT and not FORM.IS_EXACT:
        e = load_kept(kept, first_i, first_j, strides.kept, TILE)
    else:
        products = tile_products(x, y, first_i, first_j, end, columns, strides, TILE)
    if FORM.IS_EXACT:
        row_bias = biases_of(terms.row, i, rows, SIDES.HAS_ROW_BIAS)
        col_bias = biases_of(terms.col, j, columns, SIDES.HAS_COL_BIAS)
        logit, logit_low = wide_logits(products, numbers, row_bias[:, None], col_bias[None, :])
        by_row = exact_terms(logit, logit_low, terms.row, i, rows, 1)
    else:
        by_row = side_factors(terms.row, terms.col, i, j, rows, columns, 1, SIDES.HAS_COL_BIAS)
    by_col = tl.zeros([1, BN], tl.float32)
    if SIDES.HAS_COLUMNS and FORM.IS_EXACT:
        by_col = exact_terms(logit, logit_low, terms.col, j, columns, 0)
    elif SIDES.HAS_COLUMNS:
        by_col = side_factors(terms.col, terms.row, j, i, columns, rows, 0, SIDES.HAS_ROW_BIAS)
    positive, excluded = positive_and_excluded(
        load_row_ids(ids, i, end, columns, PAIRS), load_col_ids(ids, j, columns, PAIRS), PAIRS, TILE
    )
    if SIDES.IS_SYMMETRIC and PAIRS.HAS_TARGET:
        target_j = load_targets(ids.target, j, columns, rows, PAIRS.HAS_TARGET)
        mirrored = target_j[None, :] == i[:, None]
        by_row, by_col = tl.where(positive, 0.0, by_row), tl.where(mirrored, 0.0, by_col)
    g = by_row + by_col
    if FORM.HAS_KEPT and not FORM.IS_EXACT:
        g = e * g
    elif not FORM.IS_EXACT:
        g = exponential(products, high, low, shift, TILE.IS_PRECISE) * g
    g = tl.where(counted(positive, excluded, PAIRS), g, 0.0)
    if PAIRS.HAS_TARGET:
        at_i = tl.load(terms.target + i, mask=i < end, other=0)[:, None]
        if SIDES.IS_SYMMETRIC:
            at_j = tl.load(terms.target + j, mask=j < columns, other=0)[None, :]
            g += tl.where(positive, at_i, 0.0) + tl.where(mirrored, at_j, 0.0)
        else:
            g = tl.where(positive, at_i, g)
    if PAIRS.HAS_LABELS:
        at_positive = load_term(terms.row, POSITIVE, i, rows)[:, None]
        at_positive = at_positive + load_term(terms.col, POSITIVE, j, columns)[None, :]
        g = tl.where(positive, g + at_positive, g)
    store_chunk(out, g, in_chunk, i, j, chunk, strides.out, inside, SIDES.IS_SYMMETRIC)
    g = tl.where(inside, g, 0.0)
    if FORM.NEEDS_SUMS:
        at_row = tile.to(tl.int64) * chunk.rows + in_chunk
        at_column = block.to(tl.int64) * columns + j
        g_by_columns = tl.where(is_right, g, 0.0) if SIDES.IS_SYMMETRIC else g
        tl.store(sums.row + at_row, tl.sum(g.to(tl.float64), 1), mask=i < end)
        tl.store(sums.col + at_column, tl.sum(g_by_columns.to(tl.float64), 0), mask=j < columns)
    if SIDES.IS_SYMMETRIC:
        g = tl.where(is_right, 2.0 * g, g)
    if not (FORM.HAS_KEPT and not FORM.IS_EXACT):
        tl.store(sums.scale + tile_at, tl.sum(tl.sum(g * products, 1).to(tl.float64)))


@triton.jit
def is_own_tile(
    tile_at, terms, chunk, size, IS_SYMMETRIC: tl.constexpr, IS_EXACT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Whether a launch computes a tile: the exact one, those that the shared shift fails."""
    row_blocks = tl.cdiv(chunk.rows, TILE.BM)
    first_i = chunk.first_row + tile_at % row_blocks * TILE.BM
    first_j = tile_at // row_blocks * TILE.BN
    i, j = first_i + tl.arange(0, TILE.BM), first_j + tl.arange(0, TILE.BN)
    row_trusted = tl.min(load_term(terms.row, IS_TRUSTED, i, size.rows, 1)) > 0
    col_trusted = tl.min(load_term(terms.col, IS_TRUSTED, j, size.columns, 1)) > 0
    result = (row_trusted & col_trusted) != IS_EXACT
    if IS_SYMMETRIC:
        result = result & ~((first_j >= chunk.first_row) & (first_j + TILE.BN <= first_i))
    return result


@planned
@triton.jit
def store_gradient_kernel(
    x, y, numbers, terms, ids, kept, out, sums, chunk, size, strides, PAIRS: tl.constexpr,
    SIDES: tl.constexpr, FORM: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """A program computes one tile; where IS_EXACT a few programs look through all tiles."""
    own, step = tl.program_id(0), tl.num_programs(0)
    end = own + 1
    if FORM.IS_EXACT:
        tiles = tl.cdiv(chunk.rows, TILE.BM) * tl.cdiv(size.columns, TILE.BN)
        end = tl.where(tl.load(terms.any_untrusted) == 0, 0, tiles)
    for tile_at in range(own, end, step):
        if is_own_tile(tile_at, terms, chunk, size, SIDES.IS_SYMMETRIC, FORM.IS_EXACT, TILE):
            store_tile(
                tile_at, x, y, numbers, terms, ids, kept, out, sums, chunk, size, strides, PAIRS,
                SIDES, FORM, TILE,
            )  # fmt: skip
