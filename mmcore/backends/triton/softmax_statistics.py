"""Statistics of the similarity matrix: the launches, and what is O(N + M)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.triton.exponential_sums import (
    running_log_sum_exp_kernel,
    sum_exponentials_kernel,
)
from mmcore.backends.triton.kept_rows import as_rows
from mmcore.backends.triton.launch import slab_rows
from mmcore.backends.triton.matrix import LOG2_E, BiasFactors, Matrix, Plan, sides
from mmcore.backends.triton.positives import column_positives_kernel

LN_2 = 1 / LOG2_E
# A sum below may lack entries that were flushed to 0, each less than 2⁻⁴⁰ of it above.
SMALLEST_TRUSTED_SUM = 2.0**-86
# Programs of a forward that keep the largest of GPUs busy several times over.
ENOUGH_PROGRAMS = 2048
COLUMN_TILE = (64, 64)


class Sums(NamedTuple):
    """What a side adds up to along its rows, or its columns; float64."""

    total: Tensor  # Σ E
    positive: Tensor | None  # Σ logits of positives by label

    @staticmethod
    def zeros(size: int, has_labels: bool, like: Tensor) -> Sums:
        """Nothing yet."""
        total = like.new_zeros(size, dtype=torch.float64)
        return Sums(total, torch.zeros_like(total) if has_labels else None)

    def add(self, rows: slice, parts: tuple[Tensor, Tensor]) -> None:
        """Partial sums of some rows, (parts, rows) each."""
        self.total[rows].add_(parts[0].sum(0, dtype=torch.float64))
        if self.positive is not None:
            self.positive[rows].add_(parts[1].sum(0, dtype=torch.float64))


def softmax_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept_size = arguments
    matrix = Matrix.of(*described)
    plan, row_factors, col_factors, is_shared = sides(matrix)
    kept = matrix.x.new_empty(kept_size, dtype=torch.float32)
    rows, columns = _sum_exponentials(matrix, plan, row_factors, col_factors, kept)
    logits = None if matrix.target is None else matrix.target_logits()
    row = _statistics(matrix, plan, rows, logits, col_factors, is_shared, is_rows=True)
    if columns is None:
        nothing = row[0].new_empty(0)
        return row[0], nothing, row[1], nothing.clone(), kept
    col = _statistics(matrix, plan, columns, logits, row_factors, is_shared, is_rows=False)
    return row[0], col[0], row[1], col[1], kept


def _sum_exponentials(
    matrix: Matrix, plan: Plan, row_factors: BiasFactors, col_factors: BiasFactors, kept: Tensor
) -> tuple[Sums, Sums | None]:
    """Of rows, and of columns where they exist; fills `kept`."""
    (rows, columns), tile, x = matrix.shape, matrix.tile("sums"), matrix.x
    is_half, has_labels = matrix.is_half_enough, matrix.row_label is not None
    if is_half:  # what a column adds up to is a row's, as in exponential_sums.py
        row_factors = col_factors
    of_rows = Sums.zeros(rows, has_labels, x)
    of_columns = Sums.zeros(columns, has_labels, x) if matrix.has_columns else None
    rows_of_e = as_rows(kept, columns)
    size = slab_rows(x, columns, tile.BM, 2 if has_labels else 1)
    for first in range(0, rows, size):
        slab = slice(first, min(first + size, rows))
        by_rows, by_columns = _sum_slab(matrix, plan, slab, row_factors, col_factors, rows_of_e)
        of_rows.add(slab, by_rows)
        if is_half:
            of_rows.add(slice(columns), by_columns)
        elif of_columns is not None:
            of_columns.add(slice(columns), by_columns)
    return of_rows, of_columns


Parts = tuple[Tensor, Tensor]


def _sum_slab(
    matrix: Matrix, plan: Plan, slab: slice, row_factors: BiasFactors, col_factors: BiasFactors,
    rows_of_e: Tensor,
) -> tuple[Parts, Parts]:  # fmt: skip
    """Partial sums along the rows of a slab, by strips of columns, and along its columns."""
    (rows, columns), tile, x = matrix.shape, matrix.tile("sums"), matrix.x
    count, is_half = slab.stop - slab.start, matrix.is_half_enough
    blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
    strips = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, blocks))
    strip_tiles = triton.cdiv(tiles, strips)
    strips = triton.cdiv(tiles, strip_tiles)
    sums_columns = matrix.has_columns or is_half
    new = x.new_zeros if is_half else x.new_empty  # half of them no program writes

    def partial(parts: int, size: int, is_needed: bool) -> Parts:
        needed = (is_needed, is_needed and matrix.row_label is not None)
        total, positive = (new((parts, size) if it else 0, dtype=torch.float32) for it in needed)
        return total, positive

    by_rows, by_columns = partial(strips, count, True), partial(blocks, columns, sums_columns)
    sum_exponentials_kernel[(blocks * strips,)](
        *matrix.features(tile), plan.numbers, matrix.scale.float(),
        _or(row_factors.factor, x), _or(col_factors.factor, x),
        _or(row_factors.bias, x), _or(col_factors.bias, x), *matrix.ids(),
        by_rows[0], by_columns[0], by_rows[1], by_columns[1],
        matrix.kept(rows_of_e, tile), slab.start, count, rows, columns, x.stride(0),
        matrix.keys.stride(0), strip_tiles, *rows_of_e.shape,
        DENOMINATOR=matrix.denominator, HAS_ROW_BIAS=row_factors.bias is not None,
        HAS_COL_BIAS=col_factors.bias is not None, HAS_COLUMNS=sums_columns,
        IS_SYMMETRIC=is_half, KEEPS=len(rows_of_e) > 0,
        IS_PRECISE=matrix.product_dtype == torch.float32, **matrix.settings(tile),
    )  # fmt: skip
    return by_rows, by_columns


def _statistics(
    matrix: Matrix, plan: Plan, sums: Sums, logits: Tensor | None, other: BiasFactors,
    is_shared: Tensor, is_rows: bool,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Log-sum-exp and positives of one side; `logits` are those of the targets."""
    own_bias = matrix.own_bias(is_rows)
    shared = sums.total.log() + (plan.shift + other.largest) * LN_2
    is_flagged = (sums.total < SMALLEST_TRUSTED_SUM) | ~is_shared
    anew = _running(matrix, plan, is_flagged, is_rows) * LN_2
    others = torch.where(is_flagged, anew, shared) + own_bias
    if logits is None:
        count = matrix.count_positives(is_rows)
        if sums.positive is None or count is None:
            return others, torch.zeros_like(others)
        return others, torch.where(count > 0, sums.positive + count * own_bias, 0.0)
    assert matrix.target is not None
    if is_rows:
        has_target = matrix.target != -1
        positive = torch.where(has_target, logits, 0.0)
        lse = torch.where(has_target, logits, -torch.inf)
    else:
        positive, lse = _column_positives(matrix, logits)
    if matrix.denominator == "negatives":
        # A target outside the matrix spoils its row whatever is counted.
        return torch.where(positive.isnan(), positive, others), positive
    return torch.logaddexp(others, lse), positive


def _running(matrix: Matrix, plan: Plan, is_flagged: Tensor, is_rows: bool) -> Tensor:
    rows, columns = matrix.shape
    size = rows if is_rows else columns
    out = torch.full((size,), -torch.inf, dtype=torch.float64, device=matrix.x.device)
    tile, x, y = matrix.tile("running"), matrix.x, matrix.keys
    bias_of_other = matrix.col_bias if is_rows else matrix.row_bias
    running_log_sum_exp_kernel[(triton.cdiv(size, tile.BM if is_rows else tile.BN),)](
        *matrix.features(tile), plan.numbers, _or(matrix.row_bias, x), _or(matrix.col_bias, x),
        is_flagged.to(torch.int8), out, *matrix.ids(), rows, columns, x.stride(0), y.stride(0),
        BY_COLUMNS=not is_rows, DENOMINATOR=matrix.denominator,
        HAS_BIAS=bias_of_other is not None, **matrix.settings(tile),
    )  # fmt: skip
    return out


def _column_positives(matrix: Matrix, logits: Tensor) -> tuple[Tensor, Tensor]:
    assert matrix.target is not None
    rows, columns = matrix.shape
    positive = torch.empty(columns, dtype=torch.float64, device=logits.device)
    lse = torch.empty_like(positive)
    column_positives_kernel[(triton.cdiv(columns, COLUMN_TILE[1]),)](
        matrix.target.contiguous(), logits, positive, lse, rows, columns, *COLUMN_TILE
    )
    return positive, lse


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.float().contiguous()
