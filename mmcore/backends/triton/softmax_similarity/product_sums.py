"""The gradient of the scale from a product with G, where G was formed without products.

    total = weight·Σ_i ⟨p_i, x_i⟩ / gain

p is G·y, and G was multiplied by the gain (gain.py). Other launches may have stored parts of the
total. A gain of 0 leaves nothing to divide, and its parts are 0.

Never stored: the elementwise products of p and x.
Loop order: a program takes ROWS rows and walks their columns; it also stores them, rounded, where
they are a gradient. The last program adds the parts up.
Precision: float32 products, float64 sums.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.last_block import is_last, store_total, sum_in_order
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.gain import gain_of


@planned
@triton.jit
def sum_with_rows_kernel(
    product, features, given, out, of_scale, counter, rows, columns, all_rows, product_stride,
    features_stride, out_stride, STORES: tl.constexpr, IS_LAST: tl.constexpr, IS_LOSS: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
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
    gain, weight = gain_of(given, all_rows, IS_LOSS, False)
    by = gain.to(tl.float64)
    part = tl.where(by == 0, 0.0, tl.sum(total, 0) / tl.where(by == 0, 1.0, by))
    tl.store(of_scale.part + of_scale.first + tl.program_id(0), part)
    if IS_LAST:
        if is_last(counter):
            store_total(of_scale.total, sum_in_order(of_scale.part, of_scale.count) * weight)
