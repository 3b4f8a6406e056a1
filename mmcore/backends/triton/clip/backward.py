"""The backward of clip: one launch that forms G, and its products."""

from __future__ import annotations

import torch

from mmcore.backends.inputs import Gradients
from mmcore.backends.reference.clip import ClipInputs, ClipResults, ClipUpstream, ClipWanted
from mmcore.backends.triton import hopper
from mmcore.backends.triton.clip.forward import exponentials_and_terms, loss_of
from mmcore.backends.triton.inputs import finished
from mmcore.backends.triton.kept_size import LOSS_TERMS, NUMBERS, clip
from mmcore.backends.triton.launch import by_pointers
from mmcore.backends.triton.softmax_similarity.chunks import gradients
from mmcore.backends.triton.softmax_similarity.gain import Given
from mmcore.backends.triton.softmax_similarity.gradient_totals import Gradient, Needs
from mmcore.backends.triton.softmax_similarity.matrix import matrix_of


def backward(
    inputs: ClipInputs, results: ClipResults, upstream: ClipUpstream, wanted: ClipWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x, y and scale; rounded to the dtypes of these, or sums."""
    matrix, kept = matrix_of(inputs.as_similarity(None), is_diagonal=True), results.kept
    if kept.numel() == 0:  # inside of a checkpoint: the terms, but no exponentials
        kept = inputs.x.new_empty(clip(0, inputs), dtype=torch.float32)
        loss_of(matrix, kept)
    rows_of_e, stored = exponentials_and_terms(kept, matrix)
    is_hopper = matrix.recipe.is_hopper
    needs = Needs(wanted.x, wanted.y, wanted.scale, False, rounds)
    wide = inputs.scale  # a dummy pointer
    if matrix.recipe.dtype == torch.float16:  # the unit and its product with the scale
        wide = inputs.x.new_empty(2, dtype=torch.float64)
    gradient = Gradient(
        matrix, (inputs.x.dtype, inputs.y.dtype), stored, stored[NUMBERS:], LOSS_TERMS,
        Given(upstream.loss, inputs.scale, wide), rows_of_e, True, is_hopper,
        hopper.EXACT_TILE if is_hopper else matrix.tile("gradient"),
        by_pointers(matrix.tile("kept")),
    )  # fmt: skip
    found = gradients(gradient, needs, kept.nbytes, inputs.scale)
    return finished(found[:3], (inputs.x, inputs.y, inputs.scale), wanted, rounds)
