"""The hardest negative of every row, or of every column.

    index_i = argmax_{j counted} ⟨x_i, y_j⟩, −1 where nothing is counted

Never stored: the products.
Loop order: one launch for the rows, one for the columns. A program has a block of rows, or of
columns, to itself, walks the other side and keeps the largest so far in registers. Programs share
nothing.
Precision: float32 products. Of equal products the lowest index wins. A NaN is never the largest.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.triton.inputs import Matrix
from mmcore.backends.triton.tiles import (
    load_ids,
    load_targets,
    positive_and_excluded,
    tile_products,
)


@triton.jit
def hardest_negatives_kernel(
    x, y, out, target, row_label, col_label, row_group, col_group, rows, columns, x_stride,
    y_stride, BY_COLUMNS: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_GROUPS: tl.constexpr, DEPTH: tl.constexpr, WIDENS: tl.constexpr,
    PRECISION: tl.constexpr, USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    BK: tl.constexpr,
):  # fmt: skip
    OWN: tl.constexpr = BN if BY_COLUMNS else BM
    OTHER: tl.constexpr = BM if BY_COLUMNS else BN
    AXIS: tl.constexpr = 0 if BY_COLUMNS else 1
    size, other_size = (columns, rows) if BY_COLUMNS else (rows, columns)
    first_own = tl.program_id(0) * OWN
    own = first_own + tl.arange(0, OWN)
    largest = tl.full([OWN], float("-inf"), tl.float32)
    index = tl.full([OWN], -1, tl.int32)
    for start in range(0, other_size, OTHER):
        other = start + tl.arange(0, OTHER)
        i, j = (other, own) if BY_COLUMNS else (own, other)
        first_i, first_j = (start, first_own) if BY_COLUMNS else (first_own, start)
        products = tile_products(
            x, y, first_i, first_j, rows, columns, x_stride, y_stride, DEPTH, WIDENS,
            PRECISION, USES_DESCRIPTORS, BM, BN, BK,
        )  # fmt: skip
        positive, excluded = positive_and_excluded(
            load_targets(target, i, rows, columns, HAS_TARGET),
            load_ids(row_label, i, rows, HAS_LABELS), load_ids(row_group, i, rows, HAS_GROUPS), j,
            load_ids(col_label, j, columns, HAS_LABELS),
            load_ids(col_group, j, columns, HAS_GROUPS),
            HAS_TARGET, HAS_LABELS, HAS_GROUPS, BM, BN,
        )  # fmt: skip
        keep = ~(positive | excluded) & (i < rows)[:, None] & (j < columns)[None, :]
        candidates = tl.where(keep & (products == products), products, float("-inf"))
        candidate = tl.max(candidates, AXIS)
        is_better = candidate > largest
        index = tl.where(is_better, start + tl.argmax(candidates, AXIS), index)
        largest = tl.where(is_better, candidate, largest)
    tl.store(out + own, index.to(tl.int64), mask=own < size)


def hardest_negatives(*described: Any) -> tuple[Tensor, Tensor]:
    matrix = Matrix.of(*described).rounded()
    return _of_side(matrix, by_columns=False), _of_side(matrix, by_columns=True)


def _of_side(matrix: Matrix, by_columns: bool) -> Tensor:
    (rows, columns), tile = matrix.shape, matrix.tile("running")
    size, own = (columns, tile.BN) if by_columns else (rows, tile.BM)
    out = torch.empty(size, dtype=torch.int64, device=matrix.x.device)
    hardest_negatives_kernel[(triton.cdiv(size, own),)](
        *matrix.features(tile), out, *matrix.ids(), rows, columns, matrix.x.stride(0),
        matrix.keys.stride(0), BY_COLUMNS=by_columns, **matrix.settings(tile),
    )  # fmt: skip
    return out
