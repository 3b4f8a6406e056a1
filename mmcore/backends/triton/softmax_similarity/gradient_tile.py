"""One tile of G of the softmax family.

    G_ij = [counted]·(R_i·E'_ij + C_j·E''_ij) + [positive]·(c_i + d_j)

gradient.py says what these are, and which tiles there are.

Never stored: the logits.
Loop order: the products of a tile, then its epilogue.
Precision: that of gradient.py.
"""

from __future__ import annotations

from typing import NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.softmax_similarity.terms_memory import (
    BIAS,
    BIAS_FACTOR,
    FACTOR,
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


class Form(NamedTuple):
    """Which tiles a launch computes, and how."""

    HAS_KEPT: bool  # whether the forward kept E
    IS_EXACT: bool  # of what was not kept, the tiles that the shared shift fails, or the others
    NEEDS_SUMS: bool  # whether the gradients of biases are wanted
    NEEDS_SCALE: bool  # whether that of the scale is
    IS_LAST: bool  # whether no launch after this one has parts of it
    IS_LOSS: bool  # whether G is that of a mean loss (clip/)
    IS_FLOAT16: bool
    TERMS: int  # numbers of a row in memory


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
def exact_terms(high, low, terms, own, size, AXIS: tl.constexpr, IS_LOSS: tl.constexpr):
    """One side's share of G by an exponential of its own, of logits in two parts."""
    level_high = tl.expand_dims(load_term(terms, LSE_HIGH, own, size), AXIS)
    level_low = tl.expand_dims(load_term(terms, LSE_LOW, own, size), AXIS)
    result = exponential_of(high, low, level_high, level_low)
    if not IS_LOSS:
        result = result * tl.expand_dims(load_term(terms, WEIGHT, own, size), AXIS)
    return result


@triton.jit
def store_tile(
    block, first_j, x, y, numbers, terms, ids, kept, out, gain, sums, chunk, size, strides,
    PAIRS: tl.constexpr, SIDES: tl.constexpr, FORM: tl.constexpr, IS_EXACT: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Stores G of a tile; returns its sum with the products, 0 where there are none."""
    BM: tl.constexpr = TILE.BM
    BN: tl.constexpr = TILE.BN
    USES_KEPT: tl.constexpr = FORM.HAS_KEPT and not IS_EXACT
    HAS_TARGET: tl.constexpr = PAIRS.HAS_TARGET or PAIRS.IS_DIAGONAL
    rows, columns = size.rows, size.columns
    in_chunk, first_i = block * BM + tl.arange(0, BM), chunk.first_row + block * BM
    i, j = chunk.first_row + in_chunk, first_j + tl.arange(0, BN)
    end = chunk.first_row + chunk.rows
    inside, is_right = own_pairs(i, j, chunk.first_row, end, columns, SIDES.IS_SYMMETRIC)
    if USES_KEPT:
        e = load_kept(kept, first_i, first_j, strides.kept, TILE)
    else:
        products = tile_products(x, y, first_i, first_j, end, columns, strides, TILE)
    if IS_EXACT:
        row_bias = biases_of(terms.row, i, rows, SIDES.HAS_ROW_BIAS)
        col_bias = biases_of(terms.col, j, columns, SIDES.HAS_COL_BIAS)
        logit, logit_low = wide_logits(products, numbers, row_bias[:, None], col_bias[None, :])
        by_row = exact_terms(logit, logit_low, terms.row, i, rows, 1, FORM.IS_LOSS)
    else:
        by_row = side_factors(terms.row, terms.col, i, j, rows, columns, 1, SIDES.HAS_COL_BIAS)
    by_col = tl.zeros([1, BN], tl.float32)
    if SIDES.HAS_COLUMNS and IS_EXACT:
        by_col = exact_terms(logit, logit_low, terms.col, j, columns, 0, FORM.IS_LOSS)
    elif SIDES.HAS_COLUMNS:
        by_col = side_factors(terms.col, terms.row, j, i, columns, rows, 0, SIDES.HAS_ROW_BIAS)
    positive, excluded = positive_and_excluded(
        load_row_ids(ids, i, end, columns, PAIRS), load_col_ids(ids, j, columns, PAIRS), PAIRS, TILE
    )
    if SIDES.IS_SYMMETRIC and HAS_TARGET:
        target_j = load_targets(ids.target, j, columns, rows, PAIRS)
        mirrored = target_j[None, :] == i[:, None]
        by_row, by_col = tl.where(positive, 0.0, by_row), tl.where(mirrored, 0.0, by_col)
    g = by_row + by_col
    if USES_KEPT:
        g = e * g
    elif not IS_EXACT:
        e = exponential(products, numbers.high, numbers.low, numbers.shift, TILE.IS_PRECISE)
        g = e * g
    g = tl.where(counted(positive, excluded, PAIRS), g, 0.0)
    if HAS_TARGET:
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
    store_chunk(out, g * gain, in_chunk, i, j, chunk, strides.out, inside, SIDES.IS_SYMMETRIC)
    g = tl.where(inside, g, 0.0)
    if FORM.NEEDS_SUMS:
        at_row = (first_j // BN).to(tl.int64) * chunk.rows + in_chunk
        at_column = block.to(tl.int64) * columns + j
        g_by_columns = tl.where(is_right, g, 0.0) if SIDES.IS_SYMMETRIC else g
        tl.store(sums.row + at_row, tl.sum(g.to(tl.float64), 1), mask=i < end)
        tl.store(sums.col + at_column, tl.sum(g_by_columns.to(tl.float64), 0), mask=j < columns)
    if SIDES.IS_SYMMETRIC:
        g = tl.where(is_right, 2.0 * g, g)
    if USES_KEPT or not FORM.NEEDS_SCALE:
        part = tl.sum(tl.zeros([BM], tl.float64))
    else:
        part = tl.sum(tl.sum(g * products, 1).to(tl.float64))
    return part
