"""The backward of sigmoid_similarity: from cached products, or by a pass over the matrix."""

from __future__ import annotations

from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
)
from mmcore.backends.triton.inputs import finished, prepared
from mmcore.backends.triton.sigmoid_similarity.cached_gradients import from_cached
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import ScaledProducts, run


def backward(
    inputs: SimilarityInputs, sums: SigmoidSums, upstream: SigmoidUpstream, wanted: SigmoidWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x, y, scale and bias; rounded to the dtypes of these, or sums."""
    likes = (inputs.x, inputs.y, inputs.scale, inputs.bias)
    inputs = prepared(inputs)
    if sums.kept.numel() > 0 and inputs.target is not None:
        return finished(from_cached(inputs, sums, upstream, rounds), likes, wanted, rounds)
    gradients = ScaledProducts.like(inputs, rounds)
    found = run(inputs, upstream, gradients)
    return finished((gradients.x, gradients.y, *found.sums), likes, wanted, rounds)
