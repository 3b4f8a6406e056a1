"""Last step of a product with G: scales and rounds its rows.

    out_i = factor·p_i, rounded

p is G·y or Gᵀ·x.

Never stored: anything besides the result.
Loop order: a program takes ROWS rows and walks their columns.
Precision: float32.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned


@planned
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
