"""Statistics of each matrix's rows against the elementwise product of all others' rows.

    s_mij = scale·⟨z_mi, key_mj⟩     key_mj = Π_{l ≠ m} z_lj
    row_lse_mi = log Σ_j exp s_mij   row_pos_mi = s_mii

With `order`, a permutation of the rows of each matrix, tuples are mixed: key_mj holds row p(j) of
z_l, p = order_l ∘ order_m⁻¹. The sum then leaves out j = i, to make room for the positive;
row_pos is as without an order.

Gradients are those of softmax_similarity; z_l receives grad_key_m·Π_{k ∉ {l, m}} z_k besides.

features: M matrices (N, D); scale: 0-D; order: (M, N) int64 or None. `dtype` is what z_m and key_m
are rounded to, where autocast asks for it. The statistics are float64, (M, N).
`precision` and each of `kept` as in softmax_similarity, which computes all of it.
`wanted` says whether the gradients of each of features and of scale are; the others come back
empty. `rounds` as in softmax_similarity.
"""

from __future__ import annotations

import torch

from mmcore.backends import kept_size, selected
from mmcore.backends.reference.product_similarity import ProductInputs as ProductInputs
from mmcore.backends.reference.product_similarity import (
    ProductStatistics,
    ProductUpstream,
    ProductWanted,
)
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import as_multiplied, autocast_dtype, precision_of


def fake(inputs: ProductInputs, kept_size: int) -> ProductStatistics:
    features, scale = inputs.features, inputs.scale
    row_lse = scale.new_empty((len(features), features[0].shape[0]), dtype=torch.float64)
    kept = [scale.new_empty(kept_size, dtype=torch.float32) for _ in features]
    return ProductStatistics(row_lse, torch.empty_like(row_lse), kept)


def products(inputs: ProductInputs, wanted: ProductWanted) -> list[Product]:
    """Each modality's matrix, against the product of the others."""
    flags, size = wanted.features, inputs.features[0].numel() * inputs.features[0].shape[0]
    return [Product(size, flag, any([*flags[:m], *flags[m + 1 :]])) for m, flag in enumerate(flags)]


family = Family(
    "product_similarity", inputs=ProductInputs, results=ProductStatistics,
    upstream=ProductUpstream, wanted=ProductWanted, fake=fake,
    reads=lambda inputs: ("row_lse", "row_pos", "kept"), products=products,
)  # fmt: skip


def call(inputs: ProductInputs, *, backend: str | None) -> ProductStatistics:
    """The statistics of every modality, differentiable; the inputs are checked."""
    first, requested, size = inputs.features[0], selected(backend), 0
    inputs = inputs._replace(
        dtype=autocast_dtype(first) or first.dtype,
        precision=precision_of(as_multiplied(first[:0])),
    )
    if wants_gradient(*inputs.features, inputs.scale):
        size = kept_size(requested, "product_similarity", inputs)
    return family(inputs, kept_size=size, backend=requested)
