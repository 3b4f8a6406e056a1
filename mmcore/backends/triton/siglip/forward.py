"""The forward of siglip: a pass of sigmoid_similarity over the matrix, for its mean loss."""

from __future__ import annotations

import torch

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.siglip import SiglipInputs, SiglipResults
from mmcore.backends.triton.launch import unit_stride
from mmcore.backends.triton.sigmoid_similarity.cached_gradients import as_products
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import run


def forward(inputs: SiglipInputs, kept_size: int) -> SiglipResults:
    """The loss; with a kept size, which is that of x and y, also products for the backward."""
    matrix = matrix_of(inputs)
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    found = run(matrix, None, as_products(kept, matrix) if kept_size else None, is_loss=True)
    return SiglipResults(found.total, kept, found.sums)


def matrix_of(inputs: SiglipInputs) -> SimilarityInputs:
    """The similarity matrix; no vector has its targets, which are the diagonal."""
    return inputs.matrix(None)._replace(x=unit_stride(inputs.x), y=unit_stride(inputs.y))
