"""Statistics of the similarity matrices of prefixes of the width, each normalised anew.

    s_kij = scale·⟨x_i[:d_k], y_j[:d_k]⟩ / (max(‖x_i[:d_k]‖, eps)·max(‖y_j[:d_k]‖, eps))
    row_lse_ki = log Σ_{j counted} exp s_kij      row_pos_ki = s_ki,target(i), or 0
    col_lse_kj = log Σ_{i counted} exp s_kij

Which pairs are counted: those of different groups, and the targets (pairs.py). Gradients are those
of softmax_similarity and of l2_normalize, summed over the prefixes that hold a column.

x: (N, D); y: (M, D); scale: 0-D; ends: d_k of the K prefixes, ascending; target: (N,); groups as in
softmax_similarity. The statistics are float64, (K, N) and (K, M). `precision`, `kept`, `wanted`
(x, y, scale) and `rounds` as in softmax_similarity. is_apart: (K,) booleans, the prefixes whose
products were computed by themselves, as they have to be in the backward, for the same bits.
"""

from __future__ import annotations

import torch

from mmcore.backends import kept_size, selected
from mmcore.backends.reference.prefix_similarity import PrefixInputs as PrefixInputs
from mmcore.backends.reference.prefix_similarity import (
    PrefixStatistics,
    PrefixUpstream,
    PrefixWanted,
)
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import as_multiplied, precision_of


def fake(inputs: PrefixInputs, kept_size: int) -> PrefixStatistics:
    x, prefixes = inputs.x, len(inputs.ends)
    row_lse, col_lse, row_pos = (
        x.new_empty(prefixes, size, dtype=torch.float64)
        for size in (x.shape[0], inputs.y.shape[0], x.shape[0])
    )
    kept = x.new_empty(kept_size, dtype=torch.float32)
    return PrefixStatistics(
        row_lse, col_lse, row_pos, kept, x.new_empty(prefixes, dtype=torch.bool)
    )


def products(inputs: PrefixInputs, wanted: PrefixWanted) -> list[Product]:
    """The matrix of each prefix."""
    pairs = inputs.x.shape[0] * inputs.y.shape[0]
    return [Product(pairs * width, wanted.x, wanted.y) for width in inputs.ends]


family = Family(
    "prefix_similarity", inputs=PrefixInputs, results=PrefixStatistics, upstream=PrefixUpstream,
    wanted=PrefixWanted, fake=fake, products=products,
)  # fmt: skip


def call(inputs: PrefixInputs, *, backend: str | None) -> PrefixStatistics:
    """The statistics of every prefix, differentiable; the inputs are checked."""
    requested, size = selected(backend), 0
    is_recorded = wants_gradient(inputs.x, inputs.y, inputs.scale)
    x = as_multiplied(inputs.x)
    inputs = inputs._replace(x=x, y=as_multiplied(inputs.y), precision=precision_of(x))
    if is_recorded:
        size = kept_size(requested, "prefix_similarity", inputs)
    return family(inputs, kept_size=size, backend=requested)
