"""The backward of sigmoid_similarity: from cached gradients, or by a pass over the matrix."""

from __future__ import annotations

import torch

from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
)
from mmcore.backends.triton.inputs import finished, prepared
from mmcore.backends.triton.sigmoid_similarity.cached_gradients import from_cached
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import (
    ProductGradients,
    new_terms,
    run,
)


def backward(
    inputs: SimilarityInputs, sums: SigmoidSums, upstream: SigmoidUpstream, wanted: SigmoidWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x, y, scale and bias; rounded to the dtypes of these, or sums."""
    likes = (inputs.x, inputs.y, inputs.scale, inputs.bias)
    inputs = prepared(inputs)
    if sums.kept.numel() > 0 and inputs.target is not None:
        return finished(from_cached(inputs, sums, upstream, rounds), likes, wanted, rounds)
    x, y = inputs.x, inputs.y
    gradients = ProductGradients(
        torch.empty(x.shape, dtype=x.dtype if rounds else torch.float32, device=x.device),
        None if y is None else torch.empty_like(y, dtype=torch.float32),
    )
    found = run(inputs, new_terms(inputs, upstream), gradients)
    return finished((*gradients, *found.sums), likes, wanted, rounds)
