"""The forward of softmax_similarity: its launches.

Log-sum-exps of positives take a second pass, which counts positives alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs, SoftmaxStatistics
from mmcore.backends.triton.arguments import BothSides
from mmcore.backends.triton.inputs import count_col_positives, count_row_positives, pointer
from mmcore.backends.triton.launch import whole
from mmcore.backends.triton.softmax_similarity.kept_exponentials import rows_and_numbers
from mmcore.backends.triton.softmax_similarity.log_sum_exps import (
    Matrix,
    SideStatistics,
    Targets,
    log_sum_exps_kernel,
)
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix, matrix_of
from mmcore.backends.triton.softmax_similarity.norms import NormsAndTargets, norms_and_targets
from mmcore.backends.triton.softmax_similarity.sums import Sums, sum_exponentials


def forward(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    """The statistics, with `kept_size` float32 numbers for the backward."""
    found = _one_pass(inputs, kept_size)
    if inputs.positives == "sum":
        return found
    positives = _one_pass(inputs.among_positives(), 0)
    return found._replace(row_pos=positives.row_lse, col_pos=positives.col_lse)


def _one_pass(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    matrix = matrix_of(inputs)
    found = norms_and_targets(matrix, tallies=inputs.has_columns)
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    rows_of_e, numbers = rows_and_numbers(kept, matrix.size.columns)
    sums = sum_exponentials(matrix, found.norms, rows_of_e)
    rows, columns = _statistics(matrix, found, sums, numbers)
    return SoftmaxStatistics(rows.lse, columns.lse, rows.pos, columns.pos, kept)


def _statistics(
    matrix: SimilarityMatrix, found: NormsAndTargets, sums: tuple[Sums, Sums], numbers: Tensor
) -> tuple[SideStatistics, SideStatistics]:
    """Those of rows and of columns."""
    inputs, (rows, columns) = matrix.inputs, matrix.size
    tile, has_columns = matrix.tile("statistics"), inputs.has_columns
    row_out = _empty_statistics(rows, inputs.x)
    col_out = _empty_statistics(columns if has_columns else 0, inputs.x)
    programs = whole(rows, tile.BM) + (whole(columns, tile.BN) if has_columns else 0)
    log_sum_exps_kernel[(programs,)](
        *matrix.operands(tile), block_inputs(matrix, found, sums), found.norms, inputs.scale,
        row_out, col_out, numbers, BIASES=matrix.recipe.which_biases, HAS_COLUMNS=has_columns,
        IS_MIRRORED=inputs.is_half_enough, **matrix.settings(tile),
    )  # fmt: skip
    return row_out, col_out


def block_inputs(
    matrix: SimilarityMatrix, found: NormsAndTargets, sums: tuple[Sums, Sums]
) -> Matrix:
    """What the kernel computes blocks of statistics from."""
    inputs = matrix.inputs
    counts = (
        count_row_positives(inputs),
        count_col_positives(inputs) if inputs.has_columns else None,
    )
    by_rows, by_columns = (each.as_operand() for each in sums)
    return Matrix(
        by_rows, by_columns, matrix.row_side, matrix.col_side, matrix.bias,
        BothSides(*(pointer(count, inputs.x) for count in counts)), matrix.ids,
        Targets(found.tally, found.logits), matrix.size, matrix.recipe.strides,
    )  # fmt: skip


def _empty_statistics(size: int, like: Tensor) -> SideStatistics:
    """Those of one side, to be written."""
    return SideStatistics(*(like.new_empty(size, dtype=torch.float64) for _ in range(2)))
