"""Sums of exponentials of the similarity matrix by rows and by columns: the forward's kernels.

    E_ij = 2^(a·⟨x_i, y_j⟩ − shift), a = scale·log2(e)
    row_i = Σ_{j counted} E_ij·2^(col_bias_j)        col_j = Σ_{i counted} E_ij·2^(row_bias_i)

The biases here are those of the call times log2(e), minus the largest of their side. The sums leave
targets out: log_sum_exps.py adds them from float64 logits (norms_and_targets.py).

Never stored: the logits. Where KEEPS, E of the first `kept_rows` rows is stored for the backward,
rounded to bfloat16.
Loop order: a launch takes a slab of rows. A program takes BM rows and walks the columns of one
strip; neighbouring programs take neighbouring rows of the same strip, whose y stays in L2. Sums of
rows stay in registers over the strip. Sums of the columns of every tile are stored, (blocks of the
slab, M), and added up by a later kernel in one order, without atomics.
Precision: float32, one exponential for each logit.

IS_SYMMETRIC, where y is x: only pairs with i ≤ j are computed. Entries right of the diagonal are
also summed by columns, where they stand for (j, i). So both orders of a pair have the same rounded
product, in every sum and in the gradient.

Where the shift is too coarse for a row, its sum falls below 2⁻⁸⁶ (shared_shift.py), and
log_sum_exps.py computes the row again.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.shared_shift import numbers_of
from mmcore.backends.triton.tiles import (
    counted,
    exponential,
    load_col_ids,
    load_row_ids,
    load_targets,
    positive_and_excluded,
    store_kept,
    tile_products,
)


class ExponentialSums(NamedTuple):
    """Sums of E by rows (strips, slab) and by columns (blocks, M), and of logits of positives."""

    row: Any
    col: Any
    row_positive: Any
    col_positive: Any


class Slab(NamedTuple):
    """Consecutive rows, the tiles of a strip of columns, and how many rows of E are kept in all."""

    first_row: Any
    rows: Any
    strip_tiles: Any
    kept_rows: Any


@planned
@triton.jit
def sum_exponentials_kernel(
    x, y, norms, scale, row_side, col_side, ids, sums, kept, slab, size, strides,
    PAIRS: tl.constexpr, SIDES: tl.constexpr, KEEPS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    BM: tl.constexpr = TILE.BM
    BN: tl.constexpr = TILE.BN
    HAS_TARGET: tl.constexpr = PAIRS.HAS_TARGET or PAIRS.IS_DIAGONAL
    row_blocks = tl.cdiv(slab.rows, BM)
    block, strip = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    numbers = numbers_of(norms, scale)
    in_slab, first_i = block * BM + tl.arange(0, BM), slab.first_row + block * BM
    i = slab.first_row + in_slab
    in_rows = i < size.rows
    row = load_row_ids(ids, i, size.rows, size.columns, PAIRS)
    total, pos_total = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    first = strip * slab.strip_tiles
    last = tl.minimum(first + slab.strip_tiles, tl.cdiv(size.columns, BN))
    if SIDES.IS_SYMMETRIC:
        first = tl.maximum(first, first_i // BN)
    for tile in range(first, last):
        j = tile * BN + tl.arange(0, BN)
        in_columns = j < size.columns
        at = block.to(tl.int64) * size.columns + j
        products = tile_products(x, y, first_i, tile * BN, size.rows, size.columns, strides, TILE)
        inside = in_rows[:, None] & in_columns[None, :]
        by_rows, by_columns = inside, inside
        if SIDES.IS_SYMMETRIC:
            by_rows = inside & (j[None, :] >= i[:, None])
            by_columns = inside & (j[None, :] > i[:, None])
        column = load_col_ids(ids, j, size.columns, PAIRS)
        positive, excluded = positive_and_excluded(row, column, PAIRS, TILE)
        keep = inside & counted(positive, excluded, PAIRS)
        if HAS_TARGET and not SIDES.IS_SYMMETRIC:
            keep = keep & ~positive
        e = exponential(products, numbers.high, numbers.low, numbers.shift, TILE.IS_PRECISE)
        e = tl.where(keep, e, 0.0)
        if KEEPS and first_i < slab.kept_rows:
            store_kept(kept, e, first_i, tile * BN, strides.kept, TILE)
        e_by_rows, e_by_columns = e, e
        if SIDES.IS_SYMMETRIC:
            e_by_rows, e_by_columns = tl.where(by_rows, e, 0.0), tl.where(by_columns, e, 0.0)
            if HAS_TARGET:
                target_j = load_targets(ids.target, j, size.columns, size.rows, PAIRS)
                e_by_rows = tl.where(positive, 0.0, e_by_rows)
                e_by_columns = tl.where(target_j[None, :] == i[:, None], 0.0, e_by_columns)
        if SIDES.HAS_COL_BIAS:
            factor = tl.load(col_side.factor + j, mask=in_columns, other=0)
            e_by_rows = e_by_rows * factor[None, :]
        total += tl.sum(e_by_rows, 1)
        if SIDES.HAS_COLUMNS:
            if SIDES.HAS_ROW_BIAS:
                factor = tl.load(row_side.factor + i, mask=in_rows, other=0)
                e_by_columns = e_by_columns * factor[:, None]
            tl.store(sums.col + at, tl.sum(e_by_columns, 0), mask=in_columns)
        if PAIRS.HAS_LABELS:
            by_rows, by_columns = positive & by_rows, positive & by_columns
            logit = products * tl.load(scale).to(tl.float32)
            in_row, in_col = logit, logit
            if SIDES.HAS_COL_BIAS:
                in_row += tl.load(col_side.bias + j, mask=in_columns, other=0)[None, :]
            if SIDES.HAS_ROW_BIAS:
                in_col += tl.load(row_side.bias + i, mask=in_rows, other=0)[:, None]
            pos_total += tl.sum(tl.where(by_rows, in_row, 0.0), 1)
            if SIDES.HAS_COLUMNS:
                col_total = tl.sum(tl.where(by_columns, in_col, 0.0), 0)
                tl.store(sums.col_positive + at, col_total, mask=in_columns)
    at = strip.to(tl.int64) * slab.rows + in_slab
    tl.store(sums.row + at, total, mask=in_rows)
    if PAIRS.HAS_LABELS:
        tl.store(sums.row_positive + at, pos_total, mask=in_rows)
