"""Statistics of the similarity matrix that softmax objectives are made of.

    s_ij = scale·⟨x_i, y_j⟩ + bias + row_bias_i + col_bias_j
    row_lse_i = log Σ_{j counted} exp s_ij      row_pos_i = Σ_{j: (i, j) ∈ P} s_ij
    col_lse_j = log Σ_{i counted} exp s_ij      col_pos_j = Σ_{i: (i, j) ∈ P} s_ij

or, with `positives` "log_sum_exp", which takes labels, row_pos_i = log Σ_{j: (i, j) ∈ P} exp s_ij.
What P is and which pairs are counted: pairs.py. An empty denominator is −inf, with gradient 0.
With a, b, c, d the upstream gradients of row_lse, col_lse, row_pos and col_pos:

    G_ij = [counted]·(a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j)) + [P]·(c_i + d_j)
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
    grad_row_bias_i = Σ_j G_ij     grad_col_bias_j = Σ_i G_ij     grad_bias: bias_gradient.py

where [P]·c_i is [P]·c_i·exp(s_ij − row_pos_i) if row_pos is a log-sum-exp, and [P]·d_j likewise.
The positive is subtracted inside G, before anything is rounded: as training converges
exp(s − lse) → 1 and the gradient is the small difference. Where row_pos is a log-sum-exp, Triton
takes two passes, whose gradients are rounded to the dtype of x before they are added.

x: (N, D); y: (M, D), or None where it is x itself (half the work; the rows' vectors are those of
the columns then, which come as None, and grad_row_bias is that of both); scale, bias: 0-D;
row_bias: (N,); col_bias: (M,); without `has_columns` col_lse and col_pos are empty. The statistics
are float64 for every input dtype: lse − pos is the loss, and at scale 100 the rounding of lse to
float32 alone, 4e-6, exceeds the loss of a converged model.

With `precision` "medium" a backend may round features to bfloat16 before it multiplies them, with
"high" split each in two bfloat16 numbers and sum three products (precision.py); the sums of
products are float32 all the same. `kept` is `kept_size` float32 numbers that may spare the
backward some recomputation; what they are is the backend's business. `wanted` says which of the
gradients are: x, y, scale, row_bias, col_bias; the others come back empty. Without `rounds` the
backward leaves gradients in float32, so that those of several processes can be added.
"""

from __future__ import annotations

import torch

from mmcore.backends import kept_size, selected
from mmcore.backends.inputs import SimilarityInputs as SimilarityInputs
from mmcore.backends.inputs import (
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.bias_gradient import bias_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import with_operands


def fake(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    x, columns = inputs.x, inputs.keys.shape[0] if inputs.has_columns else 0
    row_lse, row_pos = (x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(2))
    col_lse, col_pos = (x.new_empty(columns, dtype=torch.float64) for _ in range(2))
    kept = x.new_empty(kept_size, dtype=torch.float32)
    return SoftmaxStatistics(row_lse, col_lse, row_pos, col_pos, kept)


def reads(inputs: SimilarityInputs) -> tuple[str, ...]:
    """Gradients depend on logits of targets and on log-sum-exps, not on other sums."""
    positives: tuple[str, ...] = () if inputs.target is None else ("row_pos",)
    if inputs.positives == "log_sum_exp":
        positives = ("row_pos", "col_pos")
    return ("row_lse", "col_lse", *positives, "kept")


def products(inputs: SimilarityInputs, wanted: SoftmaxWanted) -> list[Product]:
    """The matrix of the logits."""
    y = wanted.x if inputs.y is None else wanted.y
    return [Product(inputs.x.numel() * inputs.keys.shape[0], wanted.x, y)]


family = Family(
    "softmax_similarity", inputs=SimilarityInputs, results=SoftmaxStatistics,
    upstream=SoftmaxUpstream, wanted=SoftmaxWanted, fake=fake, reads=reads,
    products=products, closed_forms={"bias": bias_gradient},
)  # fmt: skip


def call(inputs: SimilarityInputs, *, backend: str | None) -> SoftmaxStatistics:
    """The statistics, differentiable; the inputs are checked."""
    requested, size = selected(backend), 0
    is_recorded = wants_gradient(
        inputs.x, inputs.y, inputs.scale, inputs.bias, inputs.row_bias, inputs.col_bias
    )
    inputs = with_operands(inputs)
    if is_recorded:
        size = kept_size(requested, "softmax_similarity", inputs)
    return family(inputs, kept_size=size, backend=requested)
