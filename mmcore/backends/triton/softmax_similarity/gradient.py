"""G of the softmax family, for a chunk of rows at a time.

    G_ij = [counted]·(R_i·E'_ij + C_j·E''_ij) + [positive]·(c_i + d_j)

R and C (gradient_terms.py) are the upstream gradients of the log-sum-exps divided by the sums of
exponentials, so one exponential is enough for both sides. E' is E with the biases of the columns,
E'' is E with those of the rows. Entries of targets are computed in float64 beforehand, because near
convergence they are differences of nearly equal numbers.

Tiles with a row or a column too far below the bound are exact: they take one exponential for each
side, exp(s − lse), whose exponent is at most 0. A second launch of a few programs looks for them.

HAS_KEPT: the forward kept E, rounded to bfloat16, and no product is computed, but for exact tiles,
a few columns at a time: they must not take registers from the others.

IS_SYMMETRIC, where y is x and columns have no statistics of their own: G + Gᵀ is stored, so that C
is R, and targets of i and targets of j are replaced separately. Where the columns are also rows of
the chunk, half of the entries are computed, and each is stored twice. Sums by columns cover that
half only, and are added to the sums by rows.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: one tile a program; neighbouring programs take neighbouring rows of the same columns. In
a launch for exact tiles alone a program walks over several of them. The last program adds the sums
for the scale up (last_block.py).
Precision: float32; G is multiplied by its gain (gain.py) and stored in the dtype that is
multiplied. Sums are taken before that: by rows and by columns, for the gradients of the biases, in
float64; with the products, for that of the scale, in float32 along the rows of a tile and in
float64 over its rows.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.last_block import is_last, store_total, sum_in_order
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.gain import gain_of
from mmcore.backends.triton.softmax_similarity.gradient_tile import load_term, store_tile
from mmcore.backends.triton.softmax_similarity.shared_shift import load_numbers
from mmcore.backends.triton.softmax_similarity.terms_memory import (
    FLAGGED,
    IS_TRUSTED,
    terms_in,
)


class BiasSums(NamedTuple):
    """Sums of G, float64: by rows (tiles, rows), by columns (blocks, M)."""

    row: Any
    col: Any


class ScaleParts(NamedTuple):
    """Parts of the gradient of the scale, which all launches of a backward share."""

    part: Any  # float64: sums of G, before its gain, with the products
    first: Any  # of this launch
    count: Any  # of all
    total: Any  # 0-D: the gradient


@triton.jit
def place_of(tile_at, chunk, TILE: tl.constexpr):
    """The block of rows of a tile, and its first column: neighbours share columns."""
    row_blocks = tl.cdiv(chunk.rows, TILE.BM)
    return tile_at % row_blocks, tile_at // row_blocks * TILE.BN


@triton.jit
def is_trusted(block, first_j, terms, chunk, size, TILE: tl.constexpr):
    """Whether the shared shift serves a tile."""
    i = chunk.first_row + block * TILE.BM + tl.arange(0, TILE.BM)
    j = first_j + tl.arange(0, TILE.BN)
    row_trusted = tl.min(load_term(terms.row, IS_TRUSTED, i, size.rows, 1)) > 0
    return row_trusted & (tl.min(load_term(terms.col, IS_TRUSTED, j, size.columns, 1)) > 0)


@triton.jit
def is_computed(block, first_j, terms, chunk, size, SIDES: tl.constexpr, FORM: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Whether a launch computes a tile of what was not kept."""
    result = is_trusted(block, first_j, terms, chunk, size, TILE) != FORM.IS_EXACT
    if SIDES.IS_SYMMETRIC:
        # Right of the diagonal a tile is stored twice.
        first_i = chunk.first_row + block * TILE.BM
        result = result & ~((first_j >= chunk.first_row) & (first_j + TILE.BN <= first_i))
    return result


@triton.jit
def has_flag(terms, size, IS_HALF: tl.constexpr):
    """Whether the shared shift fails anywhere."""
    flags = tl.cdiv(size.rows, FLAGGED)
    if not IS_HALF:
        flags += tl.cdiv(size.columns, FLAGGED)
    found = tl.zeros([1024], tl.float32)
    for start in range(0, flags, 1024):
        at = start + tl.arange(0, 1024)
        found = tl.maximum(found, tl.load(terms.row_flags + at, mask=at < flags, other=0))
    return tl.max(found, 0) > 0


@triton.jit
def store_kept_tile(
    block, first_j, x, y, numbers, terms, ids, kept, out, gain, sums, chunk, size, strides,
    PAIRS: tl.constexpr, SIDES: tl.constexpr, FORM: tl.constexpr, TILE: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    """Stores G of a tile from E; returns its sum with the products, where it is wanted here.

    The sum is found later, from G·y. A scale of 0 leaves none to find it from: then every tile is
    exact.
    """
    BM: tl.constexpr = TILE.BM
    part = tl.sum(tl.zeros([BM], tl.float64))
    is_spoiled = FORM.NEEDS_SCALE & (numbers.scale == 0)
    if is_trusted(block, first_j, terms, chunk, size, TILE) & (not is_spoiled):
        part = store_tile(
            block, first_j, x, y, numbers, terms, ids, kept, out, gain, sums, chunk, size, strides,
            PAIRS, SIDES, FORM, False, TILE,
        )  # fmt: skip
    else:
        for at in range(first_j, first_j + TILE.BN, NARROW.BN):
            part += store_tile(
                block, at, x, y, numbers, terms, ids, kept, out, gain, sums, chunk, size, strides,
                PAIRS, SIDES, FORM, True, NARROW,
            )  # fmt: skip
        part = tl.where(is_spoiled, part, 0.0)
    return part


@planned
@triton.jit
def store_gradient_kernel(
    x, y, stored, memory, ids, kept, out, sums, of_scale, given, chunk, size, strides,
    PAIRS: tl.constexpr, SIDES: tl.constexpr, FORM: tl.constexpr, TILE: tl.constexpr,
    NARROW: tl.constexpr,
):  # fmt: skip
    """A program computes one tile; where IS_EXACT a few programs look through all tiles."""
    own, step = tl.program_id(0), tl.num_programs(0)
    terms, numbers = terms_in(memory, size, FORM.TERMS, SIDES.IS_SYMMETRIC), load_numbers(stored)
    gain, weight = gain_of(given, size.rows, FORM.IS_LOSS, FORM.IS_FLOAT16)
    BM: tl.constexpr = TILE.BM
    part = tl.sum(tl.zeros([BM], tl.float64))
    if FORM.HAS_KEPT:
        block, first_j = place_of(own, chunk, TILE)
        part = store_kept_tile(
            block, first_j, x, y, numbers, terms, ids, kept, out, gain, sums, chunk, size, strides,
            PAIRS, SIDES, FORM, TILE, NARROW,
        )  # fmt: skip
    else:
        end = own + 1
        if FORM.IS_EXACT:
            tiles = tl.cdiv(chunk.rows, TILE.BM) * tl.cdiv(size.columns, TILE.BN)
            end = tl.where(has_flag(terms, size, SIDES.IS_SYMMETRIC), tiles, 0)
        for tile_at in range(own, end, step):
            block, first_j = place_of(tile_at, chunk, TILE)
            if is_computed(block, first_j, terms, chunk, size, SIDES, FORM, TILE):
                part += store_tile(
                    block, first_j, x, y, numbers, terms, ids, kept, out, gain, sums, chunk, size,
                    strides, PAIRS, SIDES, FORM, FORM.IS_EXACT, TILE,
                )  # fmt: skip
    if FORM.NEEDS_SCALE:
        tl.store(of_scale.part + of_scale.first + own, part)
        if FORM.IS_LAST:
            if is_last(terms.counter):
                total = sum_in_order(of_scale.part, of_scale.count) * weight
                store_total(of_scale.total, total * 0.5 if SIDES.IS_SYMMETRIC else total)
