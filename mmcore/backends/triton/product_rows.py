"""Last step of a product with G: scales and rounds its rows, and sums their products with x.

    out_i = factor·p_i, rounded        part = Σ_i ⟨p_i, x_i⟩

p is G·y or Gᵀ·x. Parts are summed for G·y only, and add up to the gradient of the scale.

Never stored: the elementwise products of p and x.
Loop order: a program takes ROWS rows and walks their columns.
Precision: float32 products, float64 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned


@planned
@triton.jit
def scale_rows_kernel(
    product, features, factor, out, part, rows, columns, product_stride, features_stride,
    out_stride, STORES: tl.constexpr, SUMS: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row = row.to(tl.int64)[:, None]
    by = tl.load(factor).to(tl.float32)
    total = tl.zeros([ROWS], tl.float64)
    for start in range(0, columns, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows)[:, None] & (k < columns)
        found = tl.load(product + at_row * product_stride + k, mask=inside, other=0)
        if STORES:
            tl.store(out + at_row * out_stride + k, found * by, mask=inside)
        if SUMS:
            row_of_x = tl.load(features + at_row * features_stride + k, mask=inside, other=0)
            total += tl.sum((found * row_of_x.to(tl.float32)).to(tl.float64), 1)
    if SUMS:
        tl.store(part + tl.program_id(0), tl.sum(total, 0))
