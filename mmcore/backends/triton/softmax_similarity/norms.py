"""The first launch of softmax_similarity: norms, and logits of targets."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.triton.arguments import Biases
from mmcore.backends.triton.inputs import pointer
from mmcore.backends.triton.launch import row_tile, whole
from mmcore.backends.triton.norms_and_targets import (
    MOST_PARTS,
    Purpose,
    norms_and_targets_kernel,
)
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix

NORMS = 2 * MOST_PARTS.value


class Norms(NamedTuple):
    """The largest norms that programs have seen, as the kernels take them."""

    maxima: Tensor  # (2·MOST_PARTS,) float64: squares; of x, then of y
    parts: int  # how many of each there are


class NormsAndTargets(NamedTuple):
    """What one launch finds."""

    norms: Norms
    tally: Tensor  # (M,) int64; a dummy where it is not wanted
    logits: Tensor  # (N,) float64; anything where there is no target


def norms_and_targets(matrix: SimilarityMatrix, *, tallies: bool) -> NormsAndTargets:
    """Norms, float64 logits of targets, biases included, and the tally where it is wanted."""
    x, rows, has_target = matrix.inputs.x, matrix.size.rows, matrix.recipe.has_target
    maxima = x.new_empty(NORMS + (rows if has_target else 0), dtype=torch.float64)
    tallies = tallies and matrix.recipe.pairs.HAS_TARGET
    tally = x.new_zeros(matrix.size.columns, dtype=torch.int64) if tallies else x
    norms = find_norms(matrix, maxima, tally if tallies else None)
    return NormsAndTargets(norms, tally, maxima[NORMS:])


def find_norms(
    matrix: SimilarityMatrix, maxima: Tensor, tally: Tensor | None = None,
    zeros: Tensor | None = None, *, has_counter: bool = False,
) -> Norms:  # fmt: skip
    """Fills the maxima, and behind them the logits of targets; if there is one, the counter.

    Also fills N numbers with zeros, if they are given.
    """
    inputs, recipe = matrix.inputs, matrix.recipe
    x, y, size = inputs.x, inputs.keys, matrix.size
    has_y, tile = inputs.y is not None, row_tile(x.shape[1])
    programs = min(MOST_PARTS.value, whole(max(size) if has_y else size.rows, tile.ROWS))
    biases = Biases(matrix.bias, pointer(inputs.row_bias, x), pointer(inputs.col_bias, x))
    norms_and_targets_kernel[(programs,)](
        x, y, matrix.ids.target, inputs.scale, biases, maxima, x if tally is None else tally,
        maxima if zeros is None else zeros, size, x.shape[1], recipe.strides,
        PURPOSE=Purpose(has_y, tally is not None, has_counter, zeros is not None),
        PAIRS=recipe.pairs, BIASES=recipe.which_biases, ROWS=tile.ROWS, COLUMNS=tile.COLUMNS,
    )  # fmt: skip
    return Norms(maxima, programs)
