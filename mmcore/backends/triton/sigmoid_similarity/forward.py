"""The forward of sigmoid_similarity: one pass, which may form products for the backward."""

from __future__ import annotations

import torch

from mmcore.backends.inputs import SigmoidSums, SimilarityInputs
from mmcore.backends.triton.inputs import prepared
from mmcore.backends.triton.sigmoid_similarity.cached_gradients import as_products
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import run


def forward(inputs: SimilarityInputs, kept_size: int) -> SigmoidSums:
    """Both sums; with a kept size, which is that of x and y, also products for the backward."""
    inputs = prepared(inputs)
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    found = run(inputs, None, as_products(kept, inputs) if kept_size else None)
    return SigmoidSums(found.total, found.positive, kept, found.sums)
