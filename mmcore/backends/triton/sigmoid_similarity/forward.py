"""The forward of sigmoid_similarity: one pass, which may form gradients for the backward."""

from __future__ import annotations

import torch

from mmcore.backends.inputs import SigmoidSums, SimilarityInputs
from mmcore.backends.triton.inputs import prepared
from mmcore.backends.triton.sigmoid_similarity.cached_gradients import as_gradients
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import new_terms, run


def forward(inputs: SimilarityInputs, kept_size: int) -> SigmoidSums:
    """Both sums; with a kept size, which is that of x and y, also gradients for the backward."""
    inputs = prepared(inputs)
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    gradients = as_gradients(kept, inputs) if kept_size else None
    found = run(inputs, new_terms(inputs, None), gradients)
    kept_sums = found.sums if kept_size else found.sums.new_empty(0)
    return SigmoidSums(found.total, found.positive, kept, kept_sums)
