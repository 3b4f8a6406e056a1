"""The forward of clip: three launches."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.reference.clip import ClipInputs, ClipResults
from mmcore.backends.triton.clip.loss import clip_loss_kernel
from mmcore.backends.triton.kept_size import HEADER, LOSS_TERMS, NUMBERS, terms_size
from mmcore.backends.triton.launch import whole
from mmcore.backends.triton.softmax_similarity.kept_exponentials import rows_and_numbers
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix, matrix_of
from mmcore.backends.triton.softmax_similarity.norms import NORMS, find_norms
from mmcore.backends.triton.softmax_similarity.sums import sum_exponentials


def forward(inputs: ClipInputs, kept_size: int) -> ClipResults:
    """The loss, with `kept_size` float32 numbers for the backward."""
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    matrix = matrix_of(inputs.as_similarity(None), is_diagonal=True)
    return ClipResults(loss_of(matrix, kept), kept)


def loss_of(matrix: SimilarityMatrix, kept: Tensor) -> Tensor:
    """The loss; fills what is kept, which may be nothing."""
    inputs, recipe, rows = matrix.inputs, matrix.recipe, matrix.size.rows
    tile, x = matrix.tile("statistics"), inputs.x
    programs = whole(rows, tile.BM) + whole(rows, tile.BN)
    scratch = x.new_empty(NORMS + rows + 1 + programs, dtype=torch.float64)
    has_terms = kept.numel() > 0
    rows_of_e, stored = exponentials_and_terms(kept, matrix) if has_terms else (kept.view(0, 1), x)
    zeros = stored[NUMBERS + HEADER + 2 * LOSS_TERMS * rows :] if has_terms else None
    norms = find_norms(matrix, scratch, zeros=zeros, has_counter=True)
    by_rows, by_columns = sum_exponentials(matrix, norms, rows_of_e)
    loss = x.new_empty((), dtype=torch.float32)
    clip_loss_kernel[(programs,)](
        *matrix.operands(tile), by_rows.total, by_columns.total, scratch, inputs.scale, stored,
        loss, by_rows.total.shape[0], by_columns.total.shape[0], norms.parts, rows,
        recipe.strides.x, recipe.strides.y, BIASES=recipe.which_biases, COUNT=LOSS_TERMS,
        HAS_TERMS=has_terms, **matrix.settings(tile),
    )  # fmt: skip
    return loss


def exponentials_and_terms(kept: Tensor, matrix: SimilarityMatrix) -> tuple[Tensor, Tensor]:
    """Rows of E, and the numbers of the matrix with the terms of G behind them."""
    rows = matrix.size.rows
    return rows_and_numbers(kept, rows, NUMBERS + terms_size(rows, rows, LOSS_TERMS))
