"""Sums over the similarity matrix that sigmoid objectives are made of.

    s_ij = scale·⟨x_i, y_j⟩ + bias
    total = Σ_{(i, j) ∉ X} softplus(s_ij)      positive = Σ_{(i, j) ∈ P} s_ij

What P and X are: pairs.py. With a and c the upstream gradients of total and positive:

    G_ij = a·[∉ X]·σ(s_ij) + c·[P]
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
    grad_bias = Σ_ij G_ij

The positive is subtracted inside G, before anything is rounded: as training converges σ → 1.

x: (N, D); y: (M, D), or None where it is x itself (S = Sᵀ, half the work; no vector of the columns
then); scale, bias: 0-D; total, positive: 0-D float64.

G needs no statistic of the matrix. So with a `kept_size`, the number of elements of x and y, the
forward forms the gradients at a = −c = 1 in the same pass: `kept` are those of x and y, flat,
float32, where a backend pleases without the factor scale, and `kept_sums` those of scale and bias,
float64. Otherwise both are empty. No bias of rows
or columns, denominator or log-sum-exp of positives is read: the family shares its inputs with
softmax_similarity. `wanted` says which of the gradients are: x, y, scale, bias; the others come
back empty. `precision` and `rounds` as in softmax_similarity.
"""

from __future__ import annotations

import torch

from mmcore.backends import kept_size, selected
from mmcore.backends.inputs import SigmoidSums, SigmoidUpstream, SigmoidWanted, SimilarityInputs
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import with_operands


def fake(inputs: SimilarityInputs, kept_size: int) -> SigmoidSums:
    x = inputs.x
    total, positive = (x.new_empty((), dtype=torch.float64) for _ in range(2))
    kept = x.new_empty(kept_size, dtype=torch.float32)
    sums = x.new_empty(2 * torch.sym_min(1, kept_size), dtype=torch.float64)
    return SigmoidSums(total, positive, kept, sums)


def products(inputs: SimilarityInputs, wanted: SigmoidWanted) -> list[Product]:
    """The matrix of the logits."""
    y = wanted.x if inputs.y is None else wanted.y
    return [Product(inputs.x.numel() * inputs.keys.shape[0], wanted.x, y)]


family = Family(
    "sigmoid_similarity", inputs=SimilarityInputs, results=SigmoidSums, upstream=SigmoidUpstream,
    wanted=SigmoidWanted, fake=fake, reads=lambda inputs: ("kept", "kept_sums"),
    products=products,
)  # fmt: skip


def call(inputs: SimilarityInputs, *, backend: str | None) -> SigmoidSums:
    """total and positive, differentiable; the inputs are checked."""
    requested, size = selected(backend), 0
    is_recorded = wants_gradient(inputs.x, inputs.y, inputs.scale, inputs.bias)
    inputs = with_operands(inputs)
    if is_recorded:
        size = kept_size(requested, "sigmoid_similarity", inputs)
    return family(inputs, kept_size=size, backend=requested)
