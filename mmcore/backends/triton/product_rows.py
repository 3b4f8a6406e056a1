"""Last step of a product with G: scales and rounds its rows, or sums their products with x.

    out_i = factor·p_i, rounded        total = Σ_i ⟨p_i, x_i⟩ / scale

p is G·y or Gᵀ·x. The total is the gradient of the scale, where p is scale·G·y; other launches may
have stored parts of it. A scale of 0 leaves nothing to divide, and its parts are 0.

Never stored: the elementwise products of p and x.
Loop order: a program takes ROWS rows and walks their columns. The last program adds the parts up.
Precision: float32 products, float64 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.last_block import is_last, store_total, sum_in_order


@triton.jit
def scale_rows_kernel(
    product, factor, out, rows, columns, product_stride, out_stride, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row = row.to(tl.int64)[:, None]
    by = tl.load(factor).to(tl.float32)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        found = tl.load(product + at_row * product_stride + k, mask=inside, other=0)
        tl.store(out + at_row * out_stride + k, found * by, mask=inside)


@triton.jit
def sum_with_rows_kernel(
    product, features, scale, out, of_scale, counter, rows, columns, product_stride,
    features_stride, out_stride, STORES: tl.constexpr, IS_LAST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row = row.to(tl.int64)[:, None]
    total = tl.zeros([ROWS], tl.float64)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        found = tl.load(product + at_row * product_stride + k, mask=inside, other=0)
        if STORES:
            tl.store(out + at_row * out_stride + k, found, mask=inside)
        row_of_x = tl.load(features + at_row * features_stride + k, mask=inside, other=0)
        total += tl.sum((found * row_of_x.to(tl.float32)).to(tl.float64), 1)
    by = tl.load(scale).to(tl.float64)
    part = tl.where(by == 0, 0.0, tl.sum(total, 0) / tl.where(by == 0, 1.0, by))
    tl.store(of_scale.part + of_scale.first + tl.program_id(0), part)
    if IS_LAST:
        if is_last(counter):
            store_total(of_scale.total, sum_in_order(of_scale.part, of_scale.count))
