"""sigmoid_similarity in plain torch; the formulas: ops/sigmoid_similarity.py."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
)
from mmcore.backends.reference.slabs import Slab, matrix_by_slabs, widened


def forward(inputs: SimilarityInputs, kept_size: int) -> SigmoidSums:
    matrix = widened(inputs)
    total, positive = (matrix.x.new_zeros((), dtype=torch.float64) for _ in range(2))
    for slab in matrix_by_slabs(matrix):
        # In float64: where training has converged, total − positive is a difference of near equals.
        wide = slab.logits.double()
        total += (-F.logsigmoid(-wide)).masked_fill_(slab.masks.excluded, 0).sum()
        positive += wide.masked_fill(~slab.masks.positive, 0).sum()
    if kept_size == 0:
        return SigmoidSums(total, positive, total.new_empty(0).float(), total.new_empty(0))
    one = total.new_ones(())
    grad_x, grad_y, *sums = _gradients(inputs, SigmoidUpstream(one, -one))
    sides = [grad_x] if inputs.y is None else [grad_x, grad_y]
    kept = torch.cat([side.flatten() for side in sides]).float()
    return SigmoidSums(total, positive, kept, torch.stack(sums))


def backward(
    inputs: SimilarityInputs, sums: SigmoidSums, upstream: SigmoidUpstream, wanted: SigmoidWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    return _gradients(inputs, upstream)


def _gradients(
    inputs: SimilarityInputs, upstream: SigmoidUpstream
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of x, y, scale and bias."""
    matrix = widened(inputs)
    x, y = matrix.x, matrix.keys
    grad_x, grad_y = (z.new_zeros(z.shape) for z in (x, y))
    grad_scale, grad_bias = (x.new_zeros((), dtype=torch.float64) for _ in range(2))
    for slab in matrix_by_slabs(matrix):
        gradient = _gradient(slab, upstream)
        grad_products = matrix.scale * gradient
        grad_x[slab.rows] = grad_products @ y
        grad_y += grad_products.T @ x[slab.rows]
        grad_scale += (gradient.double() * slab.products).sum()
        grad_bias += gradient.double().sum()
    return (grad_x + grad_y if inputs.y is None else grad_x), grad_y, grad_scale, grad_bias


def _gradient(slab: Slab, upstream: SigmoidUpstream) -> Tensor:
    """G of a slab."""
    # a·σ(s) + c = (a + c) − a·σ(−s): nothing cancels where a = −c and σ(s) → 1.
    both = (upstream.total + upstream.positive).to(slab.logits.dtype)
    total = upstream.total.to(slab.logits.dtype)
    everywhere = (total * slab.logits.sigmoid()).masked_fill_(slab.masks.excluded, 0)
    return torch.where(slab.masks.positive, both - total * (-slab.logits).sigmoid(), everywhere)
