"""Log-sum-exps of rows, or of columns, with a running maximum: O(N·M·D), for a few of them.

    lse_i = log Σ_{j counted, j ≠ target(i)} exp(s_ij)        of columns likewise

log_sum_exps.py calls it for rows and columns that the shared shift cannot serve.

Never stored: the logits.
Loop order: a program has one block of rows and walks all columns, or the other way round. Products
have the orientation that they have in every other kernel, so that the backward finds the same bits.
Precision: logits in two float32 parts (wide_logits.py), float32 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.softmax_similarity.wide_logits import exponential_of, wide_logits
from mmcore.backends.triton.tiles import (
    counted,
    load_col_ids,
    load_row_ids,
    positive_and_excluded,
    tile_products,
)


@triton.jit
def running_log_sum_exps(
    block, x, y, numbers, row_side, col_side, ids, size, strides, BY_COLUMNS: tl.constexpr,
    PAIRS: tl.constexpr, BIASES: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Of a block of rows, or of columns; targets are left out. float64."""
    OWN: tl.constexpr = TILE.BN if BY_COLUMNS else TILE.BM
    OTHER: tl.constexpr = TILE.BM if BY_COLUMNS else TILE.BN
    AXIS: tl.constexpr = 0 if BY_COLUMNS else 1
    HAS_OWN_BIAS: tl.constexpr = BIASES.HAS_COL_BIAS if BY_COLUMNS else BIASES.HAS_ROW_BIAS
    HAS_OTHER_BIAS: tl.constexpr = BIASES.HAS_ROW_BIAS if BY_COLUMNS else BIASES.HAS_COL_BIAS
    own_side, other_side = (col_side, row_side) if BY_COLUMNS else (row_side, col_side)
    rows, columns = size.rows, size.columns
    own_size, other_size = (columns, rows) if BY_COLUMNS else (rows, columns)
    first_own = block * OWN
    own = first_own + tl.arange(0, OWN)
    zero = tl.zeros([OWN], tl.float32)
    own_bias = zero
    if HAS_OWN_BIAS:
        own_bias = tl.load(own_side.bias + own, mask=own < own_size, other=0)
    own_bias = tl.expand_dims(own_bias, AXIS)
    maximum, maximum_low, total = zero + float("-inf"), zero, zero
    for start in range(0, other_size, OTHER):
        other = start + tl.arange(0, OTHER)
        i, j = (other, own) if BY_COLUMNS else (own, other)
        first_i, first_j = (start, first_own) if BY_COLUMNS else (first_own, start)
        products = tile_products(x, y, first_i, first_j, rows, columns, strides, TILE)
        positive, excluded = positive_and_excluded(
            load_row_ids(ids, i, rows, columns, PAIRS), load_col_ids(ids, j, columns, PAIRS), PAIRS,
            TILE,
        )  # fmt: skip
        keep = counted(positive, excluded, PAIRS)
        keep = keep & (i < rows)[:, None] & (j < columns)[None, :]
        if PAIRS.HAS_TARGET or PAIRS.IS_DIAGONAL:
            keep = keep & ~positive
        other_bias = tl.zeros([OTHER], tl.float32)
        if HAS_OTHER_BIAS:
            other_bias = tl.load(other_side.bias + other, mask=other < other_size, other=0)
        other_bias = tl.expand_dims(other_bias, 1 - AXIS)
        row_bias, col_bias = (other_bias, own_bias) if BY_COLUMNS else (own_bias, other_bias)
        high, low = wide_logits(products, numbers, row_bias, col_bias)
        high = tl.where(keep, high, float("-inf"))
        largest = tl.maximum(maximum, tl.max(high, AXIS))
        is_largest = high == tl.expand_dims(largest, AXIS)
        largest_low = tl.max(tl.where(is_largest, low, float("-inf")), AXIS)
        stays = maximum == largest
        largest_low = tl.where(stays & (maximum_low > largest_low), maximum_low, largest_low)
        is_empty = largest == float("-inf")
        base, base_low = tl.where(is_empty, 0.0, largest), tl.where(is_empty, 0.0, largest_low)
        e = exponential_of(high, low, tl.expand_dims(base, AXIS), tl.expand_dims(base_low, AXIS))
        total = total * exponential_of(maximum, maximum_low, base, base_low)
        total += tl.sum(tl.where(keep, e, 0.0), AXIS)
        maximum, maximum_low = largest, base_low
    result = (maximum.to(tl.float64) + maximum_low.to(tl.float64)) + tl.log(total.to(tl.float64))
    return tl.where(total == 0, float("-inf"), result)
