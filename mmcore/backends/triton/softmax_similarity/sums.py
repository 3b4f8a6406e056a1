"""Launches of the forward of softmax_similarity that find sums of exponentials, slab by slab."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.triton import hopper
from mmcore.backends.triton.launch import slab_rows, whole
from mmcore.backends.triton.softmax_similarity.exponential_sums import (
    ExponentialSums,
    Slab,
    sum_exponentials_kernel,
)
from mmcore.backends.triton.softmax_similarity.kept_exponentials import as_operand
from mmcore.backends.triton.softmax_similarity.log_sum_exps import SideSums
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix
from mmcore.backends.triton.softmax_similarity.norms import Norms

# Programs of a forward that keep the largest of GPUs busy several times over.
ENOUGH_PROGRAMS = 2048


class Sums(NamedTuple):
    """Partial sums of rows, or of columns: (parts, size)."""

    total: Tensor  # Σ E
    positive: Tensor  # Σ logits of positives by label; a dummy without labels

    def add(self, place: slice, parts: Sums) -> None:
        """Adds those of some rows or columns to sums in one part, float64."""
        for whole_sum, partial in zip(self, parts, strict=True):
            if whole_sum.numel():
                whole_sum[0, place].add_(partial.sum(0, dtype=torch.float64))

    def as_operand(self) -> SideSums:
        """As kernels take them."""
        return SideSums(*self, self.total.shape[0])


def sum_exponentials(
    matrix: SimilarityMatrix, norms: Norms, rows_of_e: Tensor
) -> tuple[Sums, Sums]:
    """Sums by rows and by columns; fills the rows of E, if there are any."""
    (rows, columns), x = matrix.size, matrix.inputs.x
    block = (hopper.EXACT_TILE if matrix.recipe.is_hopper else matrix.tile("sums")).BM
    has_labels = matrix.recipe.pairs.HAS_LABELS
    size = slab_rows(x, columns, block, 2 if has_labels else 1)
    if size >= rows:
        return _sum_slab(matrix, norms, slice(0, rows), rows_of_e)
    row_sums, col_sums = (
        Sums(*(
            x.new_zeros((1, length if is_needed else 0), dtype=torch.float64)
            for is_needed in (is_there, is_there and has_labels)
        ))
        for length, is_there in ((rows, True), (columns, matrix.recipe.sides.HAS_COLUMNS))
    )  # fmt: skip
    for first in range(0, rows, size):
        slab = slice(first, min(first + size, rows))
        by_rows, by_columns = _sum_slab(matrix, norms, slab, rows_of_e)
        row_sums.add(slab, by_rows)
        col_sums.add(slice(columns), by_columns)
    return row_sums, col_sums


def _sum_slab(
    matrix: SimilarityMatrix, norms: Norms, slab: slice, rows_of_e: Tensor
) -> tuple[Sums, Sums]:
    """Partial sums along the rows of a slab, by strips of columns, and along its columns."""
    inputs, columns, which = matrix.inputs, matrix.size.columns, matrix.recipe.sides
    count, x = slab.stop - slab.start, inputs.x
    if matrix.recipe.is_hopper:
        by_rows, by_columns = hopper.launches().sum_exponentials(matrix, norms, slab, rows_of_e)
        return Sums(by_rows, by_rows), Sums(by_columns, by_columns)
    tile = matrix.tile("sums")
    blocks, tiles = whole(count, tile.BM), whole(columns, tile.BN)
    strips = min(tiles, whole(ENOUGH_PROGRAMS, blocks))
    strip_tiles = whole(tiles, strips)
    strips = whole(tiles, strip_tiles)
    # No program writes half of the sums of a symmetric matrix.
    new = x.new_zeros if which.IS_SYMMETRIC else x.new_empty

    def partial(parts: int, size: int, is_needed: bool) -> Sums:
        total = new((parts, size if is_needed else 0), dtype=torch.float32)
        return Sums(total, torch.zeros_like(total) if matrix.recipe.pairs.HAS_LABELS else total)

    by_rows, by_columns = partial(strips, count, True), partial(blocks, columns, which.HAS_COLUMNS)
    kept_rows, kept_stride = rows_of_e.shape
    sum_exponentials_kernel[(blocks * strips,)](
        *matrix.operands(tile), norms, inputs.scale, matrix.row_side, matrix.col_side, matrix.ids,
        ExponentialSums(by_rows.total, by_columns.total, by_rows.positive, by_columns.positive),
        as_operand(rows_of_e, tile), Slab(slab.start, count, strip_tiles, kept_rows), matrix.size,
        matrix.recipe.strides._replace(kept=kept_stride), SIDES=which, KEEPS=kept_rows > 0,
        **matrix.settings(tile),
    )  # fmt: skip
    return by_rows, by_columns
