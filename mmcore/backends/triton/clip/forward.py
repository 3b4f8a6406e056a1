"""The forward of clip: three launches."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.inputs import ClipInputs, ClipResults
from mmcore.backends.triton.clip.loss import LossParts, clip_loss_kernel
from mmcore.backends.triton.kept_size import LOSS_TERMS, NUMBERS, terms_size
from mmcore.backends.triton.launch import whole
from mmcore.backends.triton.norms_and_targets import norms_and_targets
from mmcore.backends.triton.softmax_similarity.forward import block_inputs
from mmcore.backends.triton.softmax_similarity.kept_exponentials import rows_and_numbers
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix, matrix_of
from mmcore.backends.triton.softmax_similarity.sums import sum_exponentials


def forward(inputs: ClipInputs, kept_size: int) -> ClipResults:
    """The loss, with `kept_size` float32 numbers for the backward."""
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    matrix = matrix_of(inputs.as_similarity(None), is_diagonal=True)
    return ClipResults(loss_of(matrix, kept), kept)


def loss_of(matrix: SimilarityMatrix, kept: Tensor) -> Tensor:
    """The loss; fills what is kept, which may be nothing."""
    inputs, rows = matrix.inputs, matrix.size.rows
    tile, x = matrix.tile("running"), inputs.x
    programs = whole(rows, tile.BM) + whole(rows, tile.BN)
    counter = x.new_empty((), dtype=torch.float32)
    found = norms_and_targets(inputs, matrix.pairs, counter=counter)
    has_terms = kept.numel() > 0
    rows_of_e, stored = exponentials_and_terms(kept, matrix) if has_terms else (kept.view(0, 1), x)
    sums = sum_exponentials(matrix, found.norms, rows_of_e)
    loss = torch.empty_like(counter)
    part = x.new_empty(programs, dtype=torch.float64)
    clip_loss_kernel[(programs,)](
        *matrix.operands(tile), block_inputs(matrix, found, sums), found.norms, inputs.scale,
        stored, stored[NUMBERS:] if has_terms else x, LossParts(loss, part, counter), BIASES=matrix.which_biases,
        COUNT=LOSS_TERMS, HAS_TERMS=has_terms, **matrix.settings(tile),
    )  # fmt: skip
    return loss


def exponentials_and_terms(kept: Tensor, matrix: SimilarityMatrix) -> tuple[Tensor, Tensor]:
    """Rows of E, and the numbers of the matrix with the terms of G behind them."""
    rows = matrix.size.rows
    return rows_and_numbers(kept, rows, NUMBERS + terms_size(rows, rows, LOSS_TERMS))
