"""The backward of siglip: from cached products, or by a pass over the matrix."""

from __future__ import annotations

import torch

from mmcore.backends.inputs import Gradients, SigmoidUpstream
from mmcore.backends.reference.siglip import (
    SiglipInputs,
    SiglipResults,
    SiglipUpstream,
    SiglipWanted,
)
from mmcore.backends.triton.inputs import finished
from mmcore.backends.triton.launch import whole
from mmcore.backends.triton.siglip.cached_gradients import (
    NUM_WARPS,
    NUMBERS,
    SiglipGradients,
    Stored,
    siglip_gradients_kernel,
)
from mmcore.backends.triton.siglip.forward import matrix_of
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import ScaledProducts, run

# Of gradients that are not rounded.
WIDE = (torch.float32, torch.float32, torch.float64, torch.float64)


def backward(
    inputs: SiglipInputs, results: SiglipResults, upstream: SiglipUpstream, wanted: SiglipWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x, y, scale and bias; rounded to the dtypes of these, or sums."""
    if results.kept.numel() > 0:
        return _from_cached(inputs, results, upstream, wanted, rounds)
    matrix = matrix_of(inputs)
    gradients = ScaledProducts.like(matrix, rounds)
    found = run(matrix, SigmoidUpstream(upstream.loss, upstream.loss), gradients, is_loss=True)
    likes = (inputs.x, inputs.y, inputs.scale, inputs.bias)
    return finished((gradients.x, gradients.y, *found.sums), likes, wanted, rounds)


def _from_cached(
    inputs: SiglipInputs, results: SiglipResults, upstream: SiglipUpstream, wanted: SiglipWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    x = inputs.x
    likes = (x, inputs.y, inputs.scale, inputs.bias)
    gradients = [
        like.new_empty(like.shape, dtype=like.dtype if rounds else wide)
        if like is not None and is_wanted
        else None
        for like, is_wanted, wide in zip(likes, wanted, WIDE, strict=True)
    ]
    siglip_gradients_kernel[(whole(x.numel(), NUMBERS),)](
        results.kept, results.kept_sums, upstream.loss, inputs.scale,
        SiglipGradients(*(results.kept if each is None else each for each in gradients)),
        x.numel(), x.shape[0],
        STORED=Stored(*(each is not None for each in gradients)),
        IS_FLOAT16=x.dtype == torch.float16, BLOCK=NUMBERS, num_warps=NUM_WARPS,
    )  # fmt: skip
    return gradients
