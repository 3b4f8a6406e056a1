"""Statistics of the similarity matrix that softmax objectives are made of.

    s_ij = scale·⟨x_i, y_j⟩ + bias + row_bias_i + col_bias_j
    row_lse_i = log Σ_{j counted} exp s_ij      row_pos_i = Σ_{j: (i, j) ∈ P} s_ij
    col_lse_j = log Σ_{i counted} exp s_ij      col_pos_j = Σ_{i: (i, j) ∈ P} s_ij

or, with `positives` "log_sum_exp", which takes labels, row_pos_i = log Σ_{j: (i, j) ∈ P} exp s_ij.
What P is and which pairs are counted: pairs.py. An empty denominator is −inf, with gradient 0.
With a, b, c, d the upstream gradients of row_lse, col_lse, row_pos and col_pos:

    G_ij = [counted]·(a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j)) + [P]·(c_i + d_j)
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
    grad_bias = Σ_ij G_ij     grad_row_bias_i = Σ_j G_ij     grad_col_bias_j = Σ_i G_ij

where [P]·c_i is [P]·c_i·exp(s_ij − row_pos_i) if row_pos is a log-sum-exp, and [P]·d_j likewise.
The positive is subtracted inside G, before anything is rounded: as training converges
exp(s − lse) → 1 and the gradient is the small difference. Where row_pos is a log-sum-exp, Triton
takes two passes, whose gradients are rounded to the dtype of x before they are added.

x: (N, D); y: (M, D), or None where it is x itself (half the work; the rows' vectors are those of
the columns then, which come as None, and grad_row_bias is that of both); scale, bias: 0-D;
row_bias: (N,); col_bias: (M,); without `has_columns` col_lse and col_pos are empty. The statistics
are float64 for every input dtype: lse − pos is the loss, and at scale 100 the rounding of lse to
float32 alone, 4e-6, exceeds the loss of a converged model.

With `multiplies_bfloat16` a backend may round features to bfloat16 before it multiplies them; the
sums of products are float32 all the same. `kept` is `kept_size` float32 numbers that may spare the
backward some recomputation; what they are is the backend's business. `wanted` says which of the six
gradients are: x, y, scale, bias, row_bias, col_bias; the others come back empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu, triton
from mmcore.ops import pairs
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.log_sum_exp import log_sum_exp, weighted_softmax
from mmcore.ops.pairs import Pairs
from mmcore.ops.precision import arithmetic_dtype

# Reference


def reference_forward(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    row_bias: Tensor | None,
    col_bias: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *vectors, denominator, has_columns, _, positives, kept_size = arguments
    logits = _logits(_products(x, y), scale, bias, row_bias, row_bias if y is None else col_bias)
    positive, counted = _masks(Pairs(*vectors), denominator, logits)
    at_counted = logits.masked_fill(~counted, -torch.inf)

    def of_positives(dim: int) -> Tensor:
        if positives == "log_sum_exp":
            return log_sum_exp(logits.masked_fill(~positive, -torch.inf), dim)
        return logits.double().masked_fill(~positive, 0).sum(dim)

    return (
        log_sum_exp(at_counted, 1),
        log_sum_exp(at_counted, 0) if has_columns else x.new_empty(0, dtype=torch.float64),
        of_positives(1),
        of_positives(0) if has_columns else x.new_empty(0, dtype=torch.float64),
        x.new_empty(kept_size, dtype=torch.float32),
    )


def reference_backward(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    row_bias: Tensor | None,
    col_bias: Tensor | None,
    *arguments: Any,
) -> tuple[Tensor, ...]:
    *vectors, denominator, has_columns, _, positives = arguments[:9]
    row_lse, col_lse, row_pos, col_pos, _, *upstream, wanted = arguments[9:]
    products = _products(x, y)
    logits = _logits(products, scale, bias, row_bias, row_bias if y is None else col_bias)
    positive, counted = _masks(Pairs(*vectors), denominator, logits)
    grad_row_lse, grad_col_lse, grad_row_pos, grad_col_pos = upstream
    gradient = weighted_softmax(logits, row_lse[:, None], grad_row_lse[:, None])
    if has_columns:
        gradient += weighted_softmax(logits, col_lse[None], grad_col_lse[None])
    gradient.masked_fill_(~counted, 0)
    # At a positive, softmax − 1 may be the difference of equal numbers: formed in float64.
    row, column = torch.nonzero(positive, as_tuple=True)
    logit = logits[row, column].double()
    at_positive = torch.zeros_like(logit)
    sides = [(row, row_lse, grad_row_lse, row_pos, grad_row_pos)]
    sides += [(column, col_lse, grad_col_lse, col_pos, grad_col_pos)] if has_columns else []
    for place, lse, grad_lse, pos, grad_pos in sides:
        if denominator != "negatives":
            at_positive += _softmax(logit, lse[place], grad_lse[place])
        if positives == "log_sum_exp":
            at_positive += _softmax(logit, pos[place], grad_pos[place])
        else:
            at_positive += grad_pos[place]
    gradient[row, column] = at_positive.to(gradient.dtype)
    grad_products = scale.to(logits.dtype) * gradient
    grad_x = grad_products @ (x if y is None else y).to(logits.dtype)
    grad_y = grad_products.T @ x.to(logits.dtype)
    per_row, per_column = gradient.double().sum(1), gradient.double().sum(0)
    of_bias = per_row.sum()
    if y is None:
        grad_x, per_row = grad_x + grad_y, per_row + per_column
    gradients = (grad_x, grad_y, (gradient * products).sum(), of_bias, per_row, per_column)
    likes = (x, y, scale, bias, row_bias, col_bias)
    return tuple(
        x.new_empty(0) if like is None or not is_wanted else value.to(like.dtype)
        for value, like, is_wanted in zip(gradients, likes, wanted, strict=True)
    )


def _products(x: Tensor, y: Tensor | None) -> Tensor:
    dtype = arithmetic_dtype(x.dtype)
    return x.to(dtype) @ (x if y is None else y).to(dtype).T


def _logits(products: Tensor, scale: Tensor, *biases: Tensor | None) -> Tensor:
    bias, row_bias, col_bias = (None if b is None else b.to(products.dtype) for b in biases)
    logits = scale.to(products.dtype) * products
    logits = logits if bias is None else logits + bias
    logits = logits if row_bias is None else logits + row_bias[:, None]
    return logits if col_bias is None else logits + col_bias


def _masks(which: Pairs, denominator: str, logits: Tensor) -> tuple[Tensor, Tensor]:
    which.check_target(logits.shape[1])
    positive, excluded = which.masks(logits)
    return positive, pairs.counted(denominator, positive, excluded)


def _softmax(logit: Tensor, lse: Tensor, weight: Tensor) -> Tensor:
    return (weight * (logit - lse).exp()).masked_fill_(lse == -torch.inf, 0)


# Contract

_INPUTS = (
    "Tensor x, Tensor? y, Tensor scale, Tensor? bias, Tensor? row_bias, Tensor? col_bias, "
    f"{pairs.SCHEMA}, str denominator, bool has_columns, "
    "bool multiplies_bfloat16, str positives"
)
SCHEMA = (
    f"({_INPUTS}, SymInt kept_size, str backend) -> "
    "(Tensor row_lse, Tensor col_lse, Tensor row_pos, Tensor col_pos, Tensor kept)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor row_lse, Tensor col_lse, Tensor row_pos, Tensor col_pos, Tensor kept, "
    "Tensor grad_row_lse, Tensor grad_col_lse, Tensor grad_row_pos, Tensor grad_col_pos, "
    "bool[] wanted, str backend) "
    "-> (Tensor grad_x, Tensor grad_y, Tensor grad_scale, Tensor grad_bias, "
    "Tensor grad_row_bias, Tensor grad_col_bias)"
)


def fake_forward(x: Tensor, y: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    has_columns, _, _, kept_size, _ = arguments[-5:]
    per_side = (x.shape[0], (x if y is None else y).shape[0] if has_columns else 0) * 2
    return (
        *(x.new_empty(size, dtype=torch.float64) for size in per_side),
        x.new_empty(kept_size, dtype=torch.float32),
    )


def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:6], arguments[-2])


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, ctx.settings, ctx.backend = inputs[:11], inputs[11:15], inputs[-1]
    ctx.mark_non_differentiable(output[-1])
    ctx.set_materialize_grads(False)  # zeros as large as `kept` otherwise
    ctx.save_for_backward(*tensors, *output)


def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, row_lse, col_lse, row_pos, col_pos, kept = ctx.saved_tensors
    statistics = (row_lse, col_lse, row_pos, col_pos)
    grad_statistics = (
        torch.zeros_like(like) if gradient is None else gradient
        for like, gradient in zip(statistics, upstream[:4], strict=True)
    )
    wanted = list(ctx.needs_input_grad[:6])
    gradients: Sequence[Tensor] = torch.ops.mmcore.softmax_similarity_backward(
        *tensors, *ctx.settings, *statistics, kept, *grad_statistics, wanted, ctx.backend,
    )  # fmt: skip
    return (*only_wanted(gradients, wanted), *(None for _ in range(11)))


# Backends

define(
    "softmax_similarity",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": reference_forward,
        "cpu": cpu.softmax_similarity,
        "triton": triton.softmax_similarity,
    },
    save=save,
    backward=backward,
)
define(
    "softmax_similarity_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": reference_backward,
        "cpu": cpu.softmax_similarity_backward,
        "triton": triton.softmax_similarity_backward,
    },
)
