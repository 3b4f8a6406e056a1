"""sigmoid_similarity: sums over the similarity matrix, with G in the same pass.

    total = Σ_{counted} softplus(s_ij)     positive = Σ_{positive} s_ij
    s_ij = scale·⟨x_i, y_j⟩ + bias
    G_ij = a·[counted]·σ(s_ij) + c·[positive]

With z = e^−|s|, the only exponential, softplus(s) is max(s, 0) + log1p(z), and σ(s) is 1 / (1 + z)
or z / (1 + z). At a positive, softplus(−s) and s are summed separately, so that total − positive
keeps its digits, and G is (a + c) − a·σ(−s): if a = −c, nothing cancels as σ → 1. Entries of
targets are computed in float64 beforehand (prepare.py).

IS_SYMMETRIC, where y is x: G + Gᵀ is stored. Where the columns are also rows of the chunk, one
entry is computed for (i, j) and (j, i); targets of i and targets of j are replaced separately.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: one tile a program, which stores four sums: of softplus, of logits of positives by
labels, of G, of G·⟨x, y⟩. Those that a call does not need are not stored.
Precision: float32; G is stored in the dtype that is multiplied. Sums are taken before G is rounded:
float32 along the rows of a tile, float64 over its rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.tiles import (
    RowIds,
    exponent_of,
    load_col_ids,
    load_row_ids,
    load_targets,
    own_pairs,
    positive_and_excluded,
    store_chunk,
    tile_products,
)


@triton.jit
def log1p_of_unit(z):
    """log(1 + z) for z in [0, 1]: z times a minimax polynomial, relative error 5·10⁻⁹."""
    p = z * -0.0032440233 + 0.0198514536
    p = p * z - 0.0569595173
    p = p * z + 0.106036536
    p = p * z - 0.153055921
    p = p * z + 0.196759388
    p = p * z - 0.249541342
    p = p * z + 0.333299637
    p = p * z - 0.499999017
    p = p * z + 1.0
    return p * z


@triton.jit
def sum_of_tile(numbers, is_counted):
    """float32 along rows, float64 over them."""
    return tl.sum(tl.sum(tl.where(is_counted, numbers, 0.0), 1).to(tl.float64))


@planned
@triton.jit
def sigmoid_tile_kernel(
    x, y, numbers, ids, out, parts, chunk, columns, strides, PAIRS: tl.constexpr,
    HAS_GRADIENTS: tl.constexpr, IS_SYMMETRIC: tl.constexpr, IS_DIAGONAL: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    """Numbers and G of targets are those of prepare.py. IS_DIAGONAL: i is the target of row i."""
    row_blocks, program = tl.cdiv(chunk.rows, TILE.BM), tl.program_id(0)
    block, tile = program % row_blocks, program // row_blocks
    sums = parts + 4 * program
    in_chunk, j = block * TILE.BM + tl.arange(0, TILE.BM), tile * TILE.BN + tl.arange(0, TILE.BN)
    i, end = chunk.first_row + in_chunk, chunk.first_row + chunk.rows
    first_i, first_j = chunk.first_row + block * TILE.BM, tile * TILE.BN
    if IS_SYMMETRIC:
        if (first_j >= chunk.first_row) & (first_j + TILE.BN <= first_i):
            tl.store(sums + tl.arange(0, 4), tl.zeros([4], tl.float64))
            return
    # scale and bias, then both times log2(e), each in two parts
    scale, bias = tl.load(numbers), tl.load(numbers + 1)
    products = tile_products(x, y, first_i, first_j, end, columns, strides, TILE)
    logit = tl.fma(products, scale, bias)
    is_negative = logit < 0
    high, low = tl.load(numbers + 2), tl.load(numbers + 3)
    exponent = exponent_of(products, high, low, -tl.load(numbers + 4), -tl.load(numbers + 5))
    z = tl.exp2(tl.where(is_negative, exponent, -exponent))
    if IS_DIAGONAL:
        row_ids = RowIds(tl.where(i < end, i, -1), i, i)
    else:
        row_ids = load_row_ids(ids, i, end, columns, PAIRS)
    positive, excluded = positive_and_excluded(
        row_ids, load_col_ids(ids, j, columns, PAIRS), PAIRS, TILE
    )
    inside, is_right = own_pairs(i, j, chunk.first_row, end, columns, IS_SYMMETRIC)
    # times: the weight of an entry in sums. orders: 2 if it stands for (i, j) and for (j, i).
    times, orders = 1.0, 1.0
    if IS_SYMMETRIC:
        times, orders = tl.where(is_right, 1.0, 0.5), 2.0
        if PAIRS.HAS_TARGET:
            target_j = load_targets(ids.target, j, columns, columns, PAIRS)
            mirrored = target_j[None, :] == i[:, None]
            orders = 2.0 - positive.to(tl.float32) - mirrored.to(tl.float32)
    rest = log1p_of_unit(z)
    softplus_of_positive = tl.where(is_negative, -logit, 0.0) + rest
    softplus = tl.where(is_negative, 0.0, logit) + rest
    if PAIRS.HAS_TARGET and not IS_SYMMETRIC:
        softplus = tl.where(positive, 0.0, softplus)
    elif PAIRS.HAS_LABELS:
        softplus = tl.where(positive, softplus_of_positive, softplus)
    weighted = softplus * orders * times
    tl.store(sums, sum_of_tile(weighted, inside & ~excluded))
    if PAIRS.HAS_LABELS:
        weighted = logit * orders * times
        tl.store(sums + 1, sum_of_tile(weighted, inside & positive))
    if HAS_GRADIENTS:
        grad_total, both = tl.load(numbers + 8), tl.load(numbers + 9)
        larger = grad_total / (z + 1.0)
        smaller = z * larger
        g = tl.where(excluded, 0.0, tl.where(is_negative, smaller, larger))
        if PAIRS.HAS_LABELS:
            g = tl.where(positive, both - tl.where(is_negative, larger, smaller), g)
        g = g * orders
        if PAIRS.HAS_TARGET:
            at_target = numbers + 16
            at_i = tl.load(at_target + i, mask=i < end, other=0)[:, None]
            if IS_SYMMETRIC:
                at_j = tl.load(at_target + j, mask=j < columns, other=0)[None, :]
                g += tl.where(positive, at_i, 0.0) + tl.where(mirrored, at_j, 0.0)
            else:
                g = tl.where(positive, at_i, g)
        store_chunk(out, g, in_chunk, i, j, chunk, strides.out, inside, IS_SYMMETRIC)
        g = g * times
        tl.store(sums + 2, sum_of_tile(g, inside))
        tl.store(sums + 3, sum_of_tile(g * products, inside))
