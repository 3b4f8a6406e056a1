"""The loss of CLIP by itself: one op in place of softmax_similarity and what follows it.

    s_ij = scale·⟨x_i, y_j⟩
    loss = Σ_i (log Σ_j exp s_ij − s_ii)/(2·N) + Σ_j (log Σ_i exp s_ij − s_jj)/(2·N)

With g the upstream gradient:

    G_ij = g/(2·N)·(exp(s_ij − row_lse_i) + exp(s_ij − col_lse_j) − 2·[i = j])
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_ij G_ij·⟨x_i, y_j⟩

On a GPU the work around the matrix, each vector at a time, takes longer than the matrix for most
batches. Here it is part of the kernels of the matrix.

x, y: (N, D); scale: 0-D; loss: 0-D float32, float64 for float64. `precision`, `kept`, `wanted` and
`rounds` are those of softmax_similarity.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends import choose, kept_size, selected
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.backends.reference.clip import ClipInputs, ClipResults, ClipUpstream, ClipWanted
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import as_multiplied, precision_of


def fake(inputs: ClipInputs, kept_size: int) -> ClipResults:
    """Shapes and dtypes."""
    x = inputs.x
    loss = x.new_empty((), dtype=arithmetic_dtype(x.dtype))
    return ClipResults(loss, x.new_empty(kept_size, dtype=torch.float32))


def products(inputs: ClipInputs, wanted: ClipWanted) -> list[Product]:
    """The matrix of the logits."""
    return [Product(inputs.x.numel() * inputs.y.shape[0], wanted.x, wanted.y)]


family = Family(
    "clip", inputs=ClipInputs, results=ClipResults, upstream=ClipUpstream, wanted=ClipWanted,
    fake=fake, reads=lambda inputs: ("kept",), products=products,
)  # fmt: skip


def serves(x: Tensor, y: Tensor, backend: str | None) -> bool:
    """Whether this op is the faster way: on a GPU, where y is not x, which halves the work."""
    return y is not x and choose(selected(backend), x) == "triton"


def call(x: Tensor, y: Tensor, scale: Tensor, *, backend: str | None) -> Tensor:
    """The loss, differentiable; the inputs are checked."""
    requested, multiplied = selected(backend), as_multiplied(x)
    inputs = ClipInputs(multiplied, as_multiplied(y), scale, precision_of(multiplied))
    size = kept_size(requested, "clip", inputs) if wants_gradient(x, y, scale) else 0
    return family(inputs, kept_size=size, backend=requested).loss
