"""The hardest negative of every row, or of every column.

    index_i = argmax_{j counted} ⟨x_i, y_j⟩, −1 where nothing is counted

Never stored: the products.
Loop order: one launch for the rows, one for the columns. A program takes a block of rows, or of
columns, walks the other side and keeps the largest product so far in registers.
Precision: float32 products. Of equal products the lowest index wins. A NaN is never the largest
here; `with_products` looks for them.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.hardest_negatives import (
    HardestNegatives,
    NegativesInputs,
    with_products,
)
from mmcore.backends.reference.hardest_negatives import backward as backward
from mmcore.backends.triton.arguments import Size
from mmcore.backends.triton.inputs import (
    ids,
    operands,
    prepared,
    rounded,
    settings,
    shape,
    strides,
    tile_for,
)
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.tiles import (
    load_col_ids,
    load_row_ids,
    positive_and_excluded,
    tile_products,
)


@planned
@triton.jit
def hardest_negatives_kernel(
    x, y, out, ids, size, strides, BY_COLUMNS: tl.constexpr, PAIRS: tl.constexpr,
    TILE: tl.constexpr,
):  # fmt: skip
    OWN: tl.constexpr = TILE.BN if BY_COLUMNS else TILE.BM
    OTHER: tl.constexpr = TILE.BM if BY_COLUMNS else TILE.BN
    AXIS: tl.constexpr = 0 if BY_COLUMNS else 1
    rows, columns = size.rows, size.columns
    own_size, other_size = (columns, rows) if BY_COLUMNS else (rows, columns)
    first_own = tl.program_id(0) * OWN
    own = first_own + tl.arange(0, OWN)
    largest = tl.full([OWN], float("-inf"), tl.float32)
    index = tl.full([OWN], -1, tl.int32)
    for start in range(0, other_size, OTHER):
        other = start + tl.arange(0, OTHER)
        i, j = (other, own) if BY_COLUMNS else (own, other)
        first_i, first_j = (start, first_own) if BY_COLUMNS else (first_own, start)
        products = tile_products(x, y, first_i, first_j, rows, columns, strides, TILE)
        positive, excluded = positive_and_excluded(
            load_row_ids(ids, i, rows, columns, PAIRS), load_col_ids(ids, j, columns, PAIRS), PAIRS,
            TILE,
        )  # fmt: skip
        keep = ~(positive | excluded) & (i < rows)[:, None] & (j < columns)[None, :]
        candidates = tl.where(keep & (products == products), products, float("-inf"))
        candidate = tl.max(candidates, AXIS)
        is_better = candidate > largest
        index = tl.where(is_better, start + tl.argmax(candidates, AXIS), index)
        largest = tl.where(is_better, candidate, largest)
    tl.store(out + own, index.to(tl.int64), mask=own < own_size)


def forward(inputs: NegativesInputs) -> HardestNegatives:
    return with_products(inputs, *search(inputs))


def search(inputs: NegativesInputs) -> tuple[Tensor, Tensor]:
    """Indices of the columns that rows are nearest to, and of the rows that columns are."""
    matrix = rounded(prepared(inputs.matrix()))
    return _search_side(matrix, by_columns=False), _search_side(matrix, by_columns=True)


def _search_side(matrix: SimilarityInputs, by_columns: bool) -> Tensor:
    (rows, columns), tile = shape(matrix), tile_for(matrix, "running")
    size, own = (columns, tile.BN) if by_columns else (rows, tile.BM)
    out = torch.empty(size, dtype=torch.int64, device=matrix.x.device)
    hardest_negatives_kernel[(triton.cdiv(size, own),)](
        *operands(matrix, tile), out, ids(matrix), Size(rows, columns), strides(matrix),
        BY_COLUMNS=by_columns, **settings(matrix, tile),
    )  # fmt: skip
    return out
