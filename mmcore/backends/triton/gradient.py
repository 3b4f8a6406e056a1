"""G of the softmax family, a chunk of rows at a time.

    G_ij = [counted]·(R_i·E'_ij + C_j·E''_ij) + [positive]·(c_i + d_j)

with R, C the upstream gradients of the log-sum-exps over the sums themselves, so that one
exponential serves both sides, E' and E'' being E with the biases of the other side. A tile in which
a row or a column lies too far below the bound takes one exponential each, exp(s − lse), exponents
at most 0: in a second launch, IS_EXACT, whose other programs return at once, as in the first do
those of such tiles. A target's entry is formed in float64 beforehand: near convergence it is the
difference of equal numbers.

Never stored: the logits, or more of G than a chunk of rows. Loop order: one tile a program.
Precision: float32, and G in the dtype that is multiplied; its sum with the products, the scale's
gradient, and its sums by rows and columns, those of the biases, are taken before it is rounded.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.tiles import (
    LOG2_E,
    counted,
    exponent_below,
    exponential,
    load_ids,
    load_targets,
    positive_and_excluded,
    tile_products,
)

# Rows of the side terms, (TERMS, N) or (TERMS, M) float32: R or C; log2(e)·lse less the side's own
# biases in two parts; the upstream gradients of lse and of positives; whether R or C is trusted;
# 2^(bias − largest); bias.
FACTOR = tl.constexpr(0)
LSE_HIGH = tl.constexpr(1)
LSE_LOW = tl.constexpr(2)
WEIGHT = tl.constexpr(3)
POSITIVE = tl.constexpr(4)
IS_TRUSTED = tl.constexpr(5)
BIAS_FACTOR = tl.constexpr(6)
BIAS = tl.constexpr(7)
TERMS = 8


@triton.jit
def load_term(terms, number: tl.constexpr, at, size, other: tl.constexpr = 0):
    return tl.load(terms + number * tl.cast(size, tl.int64) + at, mask=at < size, other=other)


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
    row_trusted = tl.min(load_term(row_terms, IS_TRUSTED, i, rows, 1)) > 0
    is_trusted = row_trusted & (tl.min(load_term(col_terms, IS_TRUSTED, j, columns, 1)) > 0)
    if is_trusted == IS_EXACT:
        return
    products = tile_products(
        x, y, i, j, end, columns, x_stride, y_stride, DEPTH, ROUNDS, WIDENS, PRECISION,
        BM, BN, BK,
    )  # fmt: skip
    if IS_EXACT:
        level_high = load_term(row_terms, LSE_HIGH, i, rows)[:, None]
        level_low = load_term(row_terms, LSE_LOW, i, rows)[:, None]
        exponent = exponent_below(products, high, low, level_high, level_low)
        if HAS_COL_BIAS:
            exponent += load_term(col_terms, BIAS, j, columns)[None, :] * LOG2_E
        g = tl.exp2(exponent) * load_term(row_terms, WEIGHT, i, rows)[:, None]
        if HAS_COLUMNS:
            level_high = load_term(col_terms, LSE_HIGH, j, columns)[None, :]
            level_low = load_term(col_terms, LSE_LOW, j, columns)[None, :]
            exponent = exponent_below(products, high, low, level_high, level_low)
            if HAS_ROW_BIAS:
                exponent += load_term(row_terms, BIAS, i, rows)[:, None] * LOG2_E
            g += tl.exp2(exponent) * load_term(col_terms, WEIGHT, j, columns)[None, :]
    else:
        factor = load_term(row_terms, FACTOR, i, rows)[:, None]
        if HAS_COL_BIAS:
            factor = factor * load_term(col_terms, BIAS_FACTOR, j, columns)[None, :]
        if HAS_COLUMNS:
            of_col = load_term(col_terms, FACTOR, j, columns)[None, :]
            if HAS_ROW_BIAS:
                of_col = of_col * load_term(row_terms, BIAS_FACTOR, i, rows)[:, None]
            factor = factor + of_col
        g = exponential(products, high, low, shift, IS_PRECISE) * factor
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
        of_row = load_term(row_terms, POSITIVE, i, rows)[:, None]
        of_col = load_term(col_terms, POSITIVE, j, columns)[None, :]
        g = tl.where(positive, g + (of_row + of_col), g)
    inside = (i < end)[:, None] & (j < columns)[None, :]
    row_of_out = out + in_chunk.to(tl.int64)[:, None] * out_stride
    tl.store(row_of_out + j[None, :], g, mask=inside)
    g = tl.where(inside, g, 0.0)
    tl.store(scale_part + tl.program_id(0), tl.sum(tl.sum(g * products, 1).to(tl.float64)))
    if NEEDS_SUMS:
        at_row = tile.to(tl.int64) * chunk_rows + in_chunk
        at_column = block.to(tl.int64) * columns + j
        tl.store(row_sum + at_row, tl.sum(g.to(tl.float64), 1), mask=i < end)
        tl.store(col_sum + at_column, tl.sum(g.to(tl.float64), 0), mask=j < columns)
