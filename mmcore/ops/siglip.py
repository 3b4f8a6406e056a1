"""The loss of SigLIP in one op: sigmoid_similarity with the diagonal for positives, and its mean.

    s_ij = scale·⟨x_i, y_j⟩ + bias
    loss = Σ_ij softplus(±s_ij) / N, − where i = j and + elsewhere

With g the upstream gradient of the loss:

    G_ij = (σ(s_ij) − [i = j])·g / N
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
    grad_bias = Σ_ij G_ij

x, y: (N, D), different tensors; scale, bias: 0-D; loss: 0-D, float32, or float64 for float64.

With a `kept_size`, the number of elements of x and y, the forward finds in the same pass what the
backward needs: `kept`, flat, float32, from which the gradients of x and y follow by one factor, and
`kept_sums`, the gradients of scale and bias at g = 1, float64. Otherwise both are empty. `wanted`,
`precision` and `rounds` as in softmax_similarity.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends import choose, kept_size, selected
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.backends.reference.siglip import SiglipInputs as SiglipInputs
from mmcore.backends.reference.siglip import SiglipResults, SiglipUpstream, SiglipWanted
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import as_multiplied, precision_of


def fake(inputs: SiglipInputs, kept_size: int) -> SiglipResults:
    x = inputs.x
    return SiglipResults(
        x.new_empty((), dtype=arithmetic_dtype(x.dtype)),
        x.new_empty(kept_size, dtype=torch.float32),
        x.new_empty(2 * torch.sym_min(1, kept_size), dtype=torch.float64),
    )


def products(inputs: SiglipInputs, wanted: SiglipWanted) -> list[Product]:
    """The matrix of the logits."""
    return [Product(inputs.x.numel() * inputs.y.shape[0], wanted.x, wanted.y)]


family = Family(
    "siglip", inputs=SiglipInputs, results=SiglipResults, upstream=SiglipUpstream,
    wanted=SiglipWanted, fake=fake, reads=lambda inputs: ("kept", "kept_sums"), products=products,
)  # fmt: skip


def serves(x: Tensor, y: Tensor, backend: str | None) -> bool:
    """Whether this op is the faster way: on a GPU, where y is not x, which halves the work."""
    return y is not x and choose(selected(backend), x) == "triton"


def call(inputs: SiglipInputs, *, backend: str | None) -> Tensor:
    """The loss, differentiable; the inputs are checked."""
    requested, size = selected(backend), 0
    is_recorded = wants_gradient(inputs.x, inputs.y, inputs.scale, inputs.bias)
    x = as_multiplied(inputs.x)
    inputs = inputs._replace(x=x, y=as_multiplied(inputs.y), precision=precision_of(x))
    if is_recorded:
        size = kept_size(requested, "siglip", inputs)
    return family(inputs, kept_size=size, backend=requested).loss
