"""G of the softmax family, a chunk of rows at a time.

    G_ij = [counted]·(R_i·E'_ij + C_j·E''_ij) + [positive]·(c_i + d_j)

with R, C the upstream gradients of the log-sum-exps over the sums themselves, so that one
exponential serves both sides, E' and E'' being E with the biases of the other side. A tile in which
a row or a column lies too far below the bound takes one exponential each, exp(s − lse), exponents
at most 0: in a second launch, IS_EXACT, whose other programs return at once, as in the first do
those of such tiles. A target's entry is formed in float64 beforehand: near convergence it is the
difference of equal numbers. Stored: G of one chunk, in the dtype that is multiplied; nothing else.
Loop order: one tile a program. Its sum with the products, the scale's gradient, and its sums by
rows and columns, those of the biases, are stored by tile, before G is rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.tiles import (
    counted,
    exponent_below,
    exponential,
    load_ids,
    load_targets,
    positive_and_excluded,
    tile_products,
)

# The side terms, (TERMS, N) float32: factor, lse in two parts, weight, weight of positives, whether
# the factor is trusted, 2^(bias − largest), bias.
TERMS = 8


@triton.jit
def load_term(terms, number: tl.constexpr, at, size):
    return tl.load(terms + number * size.to(tl.int64) + at, mask=at < size, other=0)


@triton.jit
def store_gradient_kernel(
    x, y, plan, row_terms, col_terms, target, target_gradient,
    row_label, col_label, row_group, col_group, out, scale_part, row_sum, col_sum,
    first_row, chunk_rows, rows, columns, x_stride, y_stride, out_stride,
    DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_GROUPS: tl.constexpr, HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr, IS_PRECISE: tl.constexpr, IS_EXACT: tl.constexpr,
    NEEDS_SUMS: tl.constexpr, DEPTH: tl.constexpr,
    ROUNDS: tl.constexpr, WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row_blocks = tl.cdiv(chunk_rows, BM)
    block, tile = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    in_chunk = block * BM + tl.arange(0, BM)
    i, j = first_row + in_chunk, tile * BN + tl.arange(0, BN)
    end = first_row + chunk_rows
    high, low, shift = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    row_trusted = tl.load(row_terms + 5 * rows.to(tl.int64) + i, mask=i < end, other=1)
    col_trusted = tl.load(col_terms + 5 * columns.to(tl.int64) + j, mask=j < columns, other=1)
    is_trusted = (tl.min(row_trusted) > 0) & (tl.min(col_trusted) > 0)
    if is_trusted == IS_EXACT:
        return
    products = tile_products(
        x, y, i, j, end, columns, x_stride, y_stride, DEPTH, ROUNDS, WIDENS, PRECISION,
        BM, BN, BK,
    )  # fmt: skip
    if IS_EXACT:
        row_high, row_low = load_term(row_terms, 1, i, rows), load_term(row_terms, 2, i, rows)
        exponent = exponent_below(products, high, low, row_high[:, None], row_low[:, None])
        if HAS_COL_BIAS:
            exponent += load_term(col_terms, 7, j, columns)[None, :] * 1.4426950408889634
        g = tl.exp2(exponent) * load_term(row_terms, 3, i, rows)[:, None]
        if HAS_COLUMNS:
            col_high, col_low = (
                load_term(col_terms, 1, j, columns),
                load_term(col_terms, 2, j, columns),
            )
            exponent = exponent_below(products, high, low, col_high[None, :], col_low[None, :])
            if HAS_ROW_BIAS:
                exponent += load_term(row_terms, 7, i, rows)[:, None] * 1.4426950408889634
            g += tl.exp2(exponent) * load_term(col_terms, 3, j, columns)[None, :]
    else:
        of_row = load_term(row_terms, 0, i, rows)[:, None]
        if HAS_COL_BIAS:
            of_row = of_row * load_term(col_terms, 6, j, columns)[None, :]
        if HAS_COLUMNS:
            of_col = load_term(col_terms, 0, j, columns)[None, :]
            if HAS_ROW_BIAS:
                of_col = of_col * load_term(row_terms, 6, i, rows)[:, None]
            of_row = of_row + of_col
        g = exponential(products, high, low, shift, IS_PRECISE) * of_row
    target_i = load_targets(target, i, end, columns, HAS_TARGET)
    positive, excluded = positive_and_excluded(
        target_i, load_ids(row_label, i, end, HAS_LABELS), load_ids(row_group, i, end, HAS_GROUPS),
        j, load_ids(col_label, j, columns, HAS_LABELS), load_ids(col_group, j, columns, HAS_GROUPS),
        HAS_TARGET, HAS_LABELS, HAS_GROUPS, BM, BN,
    )  # fmt: skip
    g = tl.where(counted(positive, excluded, DENOMINATOR), g, 0.0)
    if HAS_TARGET:
        at_target = tl.load(target_gradient + i, mask=i < end, other=0)
        g = tl.where(positive, at_target[:, None], g)
    if HAS_LABELS:
        of_positive = (
            load_term(row_terms, 4, i, rows)[:, None] + load_term(col_terms, 4, j, columns)[None, :]
        )
        g = tl.where(positive, g + of_positive, g)
    inside = (i < end)[:, None] & (j < columns)[None, :]
    tl.store(
        out + in_chunk.to(tl.int64)[:, None] * out_stride + j.to(tl.int64)[None, :], g, mask=inside
    )
    g = tl.where(inside, g, 0.0)
    tl.store(scale_part + tl.program_id(0), tl.sum(tl.sum(g * products, 1).to(tl.float64)))
    if NEEDS_SUMS:
        at_row = tile.to(tl.int64) * chunk_rows + in_chunk
        at_column = block.to(tl.int64) * columns + j
        tl.store(row_sum + at_row, tl.sum(g.to(tl.float64), 1), mask=i < end)
        tl.store(col_sum + at_column, tl.sum(g.to(tl.float64), 0), mask=j < columns)
