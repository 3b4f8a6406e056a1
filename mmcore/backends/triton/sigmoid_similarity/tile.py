"""Sums over the similarity matrix for sigmoid objectives, with G in the same pass.

    total = Σ_{counted} softplus(s_ij)     positive = Σ_{positive} s_ij
    s_ij = scale·⟨x_i, y_j⟩ + bias
    G_ij = a·[counted]·σ(s_ij) + c·[positive]

With z = e^−|s|, the only exponential, softplus(s) is max(s, 0) + log1p(z), and σ(s) is 1 / (1 + z)
or z / (1 + z). At a positive, softplus(−s) and s are summed separately, so that total − positive
keeps its digits, and G is (a + c) − a·σ(−s): if a = −c, nothing cancels as σ → 1. Entries of
targets are computed in float64 beforehand (terms.py).

IS_SYMMETRIC, where y is x: G + Gᵀ is stored. Where the columns are also rows of the chunk, one
entry is computed for (i, j) and (j, i); targets of i and targets of j are replaced separately.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: one tile a program, which stores four sums.
Precision: float32; G is stored in the dtype that is multiplied. Sums are taken before G is rounded:
float32 along the rows of a tile, float64 over its rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.tiles import (
    exponent_of,
    load_ids,
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


@triton.jit
def sigmoid_tile_kernel(
    x, y, numbers, upstream, target, target_gradient, row_label, col_label, row_group, col_group,
    out, total_part, positive_part, bias_part, scale_part,
    first_row, chunk_rows, columns, x_stride, y_stride, out_stride,
    HAS_GRADIENTS: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_GROUPS: tl.constexpr, IS_SYMMETRIC: tl.constexpr, DEPTH: tl.constexpr,
    WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row_blocks = tl.cdiv(chunk_rows, BM)
    block, tile = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    in_chunk = block * BM + tl.arange(0, BM)
    i, j, end = first_row + in_chunk, tile * BN + tl.arange(0, BN), first_row + chunk_rows
    first_i, first_j = first_row + block * BM, tile * BN
    if IS_SYMMETRIC:
        if (first_j >= first_row) & (first_j + BN <= first_i):
            return
    # scale and bias, then both times log2(e), each in two parts
    scale, bias = tl.load(numbers), tl.load(numbers + 1)
    products = tile_products(
        x, y, first_i, first_j, end, columns, x_stride, y_stride, DEPTH, WIDENS,
        PRECISION, USES_DESCRIPTORS, BM, BN, BK,
    )  # fmt: skip
    logit = tl.fma(products, scale, bias)
    is_negative = logit < 0
    high, low = tl.load(numbers + 2), tl.load(numbers + 3)
    exponent = exponent_of(products, high, low, -tl.load(numbers + 4), -tl.load(numbers + 5))
    z = tl.exp2(tl.where(is_negative, exponent, -exponent))
    target_i = load_targets(target, i, end, columns, HAS_TARGET)
    positive, excluded = positive_and_excluded(
        target_i, load_ids(row_label, i, end, HAS_LABELS),
        load_ids(row_group, i, end, HAS_GROUPS), j, load_ids(col_label, j, columns, HAS_LABELS),
        load_ids(col_group, j, columns, HAS_GROUPS), HAS_TARGET, HAS_LABELS, HAS_GROUPS, BM, BN,
    )  # fmt: skip
    inside, is_right = own_pairs(i, j, first_row, end, columns, IS_SYMMETRIC)
    # times: the weight of an entry in sums. orders: 2 if it stands for (i, j) and for (j, i).
    times, orders = 1.0, 1.0
    if IS_SYMMETRIC:
        times, orders = tl.where(is_right, 1.0, 0.5), 2.0
        if HAS_TARGET:
            target_j = load_targets(target, j, columns, columns, HAS_TARGET)
            mirrored = target_j[None, :] == i[:, None]
            orders = 2.0 - positive.to(tl.float32) - mirrored.to(tl.float32)
    rest = log1p_of_unit(z)
    of_positive = tl.where(is_negative, -logit, 0.0) + rest
    softplus = tl.where(is_negative, 0.0, logit) + rest
    if HAS_TARGET and not IS_SYMMETRIC:
        softplus = tl.where(positive, 0.0, softplus)
    elif HAS_LABELS:
        softplus = tl.where(positive, of_positive, softplus)
    of_pair = softplus * orders * times
    tl.store(total_part + tl.program_id(0), sum_of_tile(of_pair, inside & ~excluded))
    if HAS_LABELS:
        of_pair = logit * orders * times
        tl.store(positive_part + tl.program_id(0), sum_of_tile(of_pair, inside & positive))
    if HAS_GRADIENTS:
        of_total, both = tl.load(upstream), tl.load(upstream + 1)
        larger = of_total / (z + 1.0)
        smaller = z * larger
        g = tl.where(excluded, 0.0, tl.where(is_negative, smaller, larger))
        if HAS_LABELS:
            g = tl.where(positive, both - tl.where(is_negative, larger, smaller), g)
        g = g * orders
        if HAS_TARGET:
            at_i = tl.load(target_gradient + i, mask=i < end, other=0)[:, None]
            if IS_SYMMETRIC:
                at_j = tl.load(target_gradient + j, mask=j < columns, other=0)[None, :]
                g += tl.where(positive, at_i, 0.0) + tl.where(mirrored, at_j, 0.0)
            else:
                g = tl.where(positive, at_i, g)
        store_chunk(out, g, in_chunk, i, j, first_row, end, out_stride, inside, IS_SYMMETRIC)
        g = g * times
        tl.store(bias_part + tl.program_id(0), sum_of_tile(g, inside))
        tl.store(scale_part + tl.program_id(0), sum_of_tile(g * products, inside))
