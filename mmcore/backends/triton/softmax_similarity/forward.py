"""Statistics of the similarity matrix: the launches.

Log-sum-exps of positives take a second pass, in which positives alone are counted.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton import hopper
from mmcore.backends.triton.inputs import Matrix
from mmcore.backends.triton.launch import slab_rows
from mmcore.backends.triton.softmax_similarity.exponential_sums import (
    running_log_sum_exp_kernel,
    sum_exponentials_kernel,
)
from mmcore.backends.triton.softmax_similarity.kept_exponentials import as_rows
from mmcore.backends.triton.softmax_similarity.log_sum_exps import BLOCK, PARTS, log_sum_exps_kernel
from mmcore.backends.triton.softmax_similarity.shared_shift import Plan

# Programs of a forward that keep the largest of GPUs busy several times over.
ENOUGH_PROGRAMS = 2048


class Sums(NamedTuple):
    """What rows, or columns, add up to: parts of it, (parts, size)."""

    total: Tensor  # Σ E
    positive: Tensor  # Σ logits of positives by label; empty without labels

    def add(self, place: slice, parts: Sums) -> None:
        """To sums in one part, float64, those of some rows or columns."""
        for whole, of_slab in zip(self, parts, strict=True):
            if whole.numel():
                whole[0, place].add_(of_slab.sum(0, dtype=torch.float64))


class SideStatistics(NamedTuple):
    """What the op returns of one side, and which of it the shared shift could not serve."""

    lse: Tensor
    pos: Tensor
    flagged: Tensor

    @staticmethod
    def empty(size: int, like: Tensor) -> SideStatistics:
        """To be written."""
        lse, pos = (like.new_empty(size, dtype=torch.float64) for _ in range(2))
        return SideStatistics(lse, pos, like.new_empty(size, dtype=torch.int8))


def softmax_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept_size = arguments
    call = SimilarityInputs(*described)
    statistics = _softmax_similarity(*described, kept_size)
    if call.positives == "sum":
        return statistics
    row_lse, col_lse, _, _, kept = statistics
    row_pos, col_pos, *_ = _softmax_similarity(*call.among_positives(), 0)
    return row_lse, col_lse, row_pos, col_pos, kept


def _softmax_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept_size = arguments
    matrix = Matrix.of(*described)
    plan = Plan.of(matrix, tallies=matrix.has_columns)
    kept = matrix.x.new_empty(kept_size, dtype=torch.float32)
    multiplied = matrix.rounded()
    by_rows, by_columns = _sum_exponentials(multiplied, plan, kept)
    rows, columns = _statistics(matrix, plan, by_rows, by_columns)
    _add_flagged(multiplied, plan, rows, is_rows=True)
    if matrix.has_columns:
        _add_flagged(multiplied, plan, columns, is_rows=False)
    return rows.lse, columns.lse, rows.pos, columns.pos, kept


def _sum_exponentials(matrix: Matrix, plan: Plan, kept: Tensor) -> tuple[Sums, Sums]:
    """Of rows and of columns; fills `kept`."""
    (rows, columns), x = matrix.shape, matrix.x
    block = (hopper.EXACT_TILE if hopper.serves(matrix) else matrix.tile("sums")).BM
    has_labels = matrix.row_label is not None
    rows_of_e = as_rows(kept, columns)
    size = slab_rows(x, columns, block, 2 if has_labels else 1)
    if size >= rows:
        return _sum_slab(matrix, plan, slice(0, rows), rows_of_e)
    sums_columns = matrix.has_columns or matrix.is_half_enough
    of_rows, of_columns = (
        Sums(*(
            x.new_zeros((1, length if is_needed else 0), dtype=torch.float64)
            for is_needed in (is_there, is_there and has_labels)
        ))
        for length, is_there in ((rows, True), (columns, sums_columns))
    )  # fmt: skip
    for first in range(0, rows, size):
        slab = slice(first, min(first + size, rows))
        by_rows, by_columns = _sum_slab(matrix, plan, slab, rows_of_e)
        of_rows.add(slab, by_rows)
        of_columns.add(slice(columns), by_columns)
    return of_rows, of_columns


def _sum_slab(matrix: Matrix, plan: Plan, slab: slice, rows_of_e: Tensor) -> tuple[Sums, Sums]:
    """Partial sums along the rows of a slab, by strips of columns, and along its columns."""
    (rows, columns), tile, x = matrix.shape, matrix.tile("sums"), matrix.x
    count, is_half = slab.stop - slab.start, matrix.is_half_enough
    if hopper.serves(matrix):
        found = hopper.sum_exponentials(matrix, plan.numbers, slab, rows_of_e)
        nothing = x.new_empty(0, dtype=torch.float32)
        by_rows, by_columns = (Sums(total, nothing) for total in found)
        return by_rows, by_columns
    blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
    strips = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, blocks))
    strip_tiles = triton.cdiv(tiles, strips)
    strips = triton.cdiv(tiles, strip_tiles)
    sums_columns = matrix.has_columns or is_half
    new = x.new_zeros if is_half else x.new_empty  # half of them no program writes

    def partial(parts: int, size: int, is_needed: bool) -> Sums:
        needed = (is_needed, is_needed and matrix.row_label is not None)
        return Sums(*(new((parts, size if it else 0), dtype=torch.float32) for it in needed))

    by_rows, by_columns = partial(strips, count, True), partial(blocks, columns, sums_columns)
    sum_exponentials_kernel[(blocks * strips,)](
        *matrix.features(tile), plan.numbers, matrix.scale,
        _or(plan.rows.factor, x), _or(plan.columns.factor, x),
        _or(plan.rows.bias, x), _or(plan.columns.bias, x), *matrix.ids(),
        by_rows.total, by_columns.total, by_rows.positive, by_columns.positive,
        matrix.kept(rows_of_e, tile), slab.start, count, rows, columns, x.stride(0),
        matrix.keys.stride(0), strip_tiles, *rows_of_e.shape,
        DENOMINATOR=matrix.denominator, HAS_ROW_BIAS=matrix.row_bias is not None,
        HAS_COL_BIAS=matrix.col_bias is not None, HAS_COLUMNS=sums_columns,
        IS_SYMMETRIC=is_half, KEEPS=len(rows_of_e) > 0,
        IS_PRECISE=matrix.product_dtype == torch.float32, **matrix.settings(tile),
    )  # fmt: skip
    return by_rows, by_columns


def _statistics(
    matrix: Matrix, plan: Plan, by_rows: Sums, by_columns: Sums
) -> tuple[SideStatistics, SideStatistics]:
    """Of rows and of columns; where flagged, of the targets alone."""
    rows, columns = matrix.shape
    x, has_columns = matrix.x, matrix.has_columns
    of_rows = SideStatistics.empty(rows, x)
    of_columns = SideStatistics.empty(columns if has_columns else 0, x)
    programs = triton.cdiv(rows, BLOCK) + (triton.cdiv(columns, BLOCK) if has_columns else 0)
    counts = [matrix.count_positives(True), None]
    if has_columns:
        counts[1] = matrix.count_positives(False)
    log_sum_exps_kernel[(programs,)](
        by_rows.total, by_columns.total, by_columns.total,
        by_rows.positive, by_columns.positive, by_columns.positive,
        len(by_rows.total), len(by_columns.total), plan.shared, *matrix.biases(),
        *(x if side.largest is None else side.largest for side in (plan.rows, plan.columns)),
        *(x if count is None else count for count in counts),
        matrix.ids()[0], plan.tally, plan.logits, of_rows.lse, of_columns.lse, of_rows.pos,
        of_columns.pos, of_rows.flagged, of_columns.flagged, rows, columns,
        DENOMINATOR=matrix.denominator, HAS_TARGET=matrix.target is not None,
        HAS_LABELS=matrix.row_label is not None, IS_MIRRORED=matrix.is_half_enough,
        **matrix.which_biases(), BLOCK=BLOCK, PARTS=PARTS,
    )  # fmt: skip
    return of_rows, of_columns


def _add_flagged(matrix: Matrix, plan: Plan, side: SideStatistics, is_rows: bool) -> None:
    """To flagged log-sum-exps all that is not a target.

    Whether any are flagged is known to the device alone: programs without one return at once.
    """
    rows, columns = matrix.shape
    tile, x, y = matrix.tile("running"), matrix.x, matrix.keys
    size, block = (rows, tile.BM) if is_rows else (columns, tile.BN)
    running_log_sum_exp_kernel[(triton.cdiv(size, block),)](
        *matrix.features(tile), plan.numbers, *matrix.biases(), side.flagged, side.lse,
        *matrix.ids(), rows, columns, x.stride(0), y.stride(0), BY_COLUMNS=not is_rows,
        DENOMINATOR=matrix.denominator, **matrix.which_biases(), **matrix.settings(tile),
    )  # fmt: skip


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.contiguous()
