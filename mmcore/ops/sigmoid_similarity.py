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

With `multiplies_bfloat16` a backend may round features to bfloat16 before it multiplies them.
G needs no statistic of the matrix. So where `keeps_gradients` the forward forms the gradients at
a = −c = 1 in the same pass: `kept` are those of x and y, flat, float32, and `kept_sums` those of
scale and bias, float64. Otherwise both are empty.
`wanted` says which of the four gradients are: x, y, scale, bias; the others come back empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.backends import cpu, triton
from mmcore.ops import pairs
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.pairs import Pairs
from mmcore.ops.precision import arithmetic_dtype

# Reference


def reference_forward(
    x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    *vectors, _, keeps_gradients = arguments
    products, logits = _products_and_logits(x, y, scale, bias)
    positive, excluded = _masks(Pairs(*vectors), logits)
    # In float64: where training has converged, total − positive is the difference of near equals.
    wide = logits.double()
    total = (-F.logsigmoid(-wide)).masked_fill_(excluded, 0).sum()
    of_positive = wide.masked_fill(~positive, 0).sum()
    one = total.new_ones(())
    if not keeps_gradients:
        return total, of_positive, x.new_empty(0, dtype=torch.float32), total.new_empty(0)
    gradient = _gradient(logits, positive, excluded, one, -one)
    grad_x, grad_y = _products_of(scale.to(logits.dtype) * gradient, x, y)
    kept = grad_x.flatten() if y is None else torch.cat([grad_x.flatten(), grad_y.flatten()])
    sums = torch.stack([(gradient.double() * products).sum(), gradient.double().sum()])
    return total, of_positive, kept.float(), sums


def reference_backward(
    x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    *vectors, _, _, _, grad_total, grad_positive, wanted = arguments
    products, logits = _products_and_logits(x, y, scale, bias)
    gradient = _gradient(logits, *_masks(Pairs(*vectors), logits), grad_total, grad_positive)
    grad_x, grad_y = _products_of(scale.to(logits.dtype) * gradient, x, y)
    gradients = (grad_x, grad_y, (gradient * products).sum(), gradient.sum())
    return tuple(
        x.new_empty(0) if like is None or not is_wanted else value.to(like.dtype)
        for value, like, is_wanted in zip(gradients, (x, y, scale, bias), wanted, strict=True)
    )


def _products_and_logits(
    x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    dtype = arithmetic_dtype(x.dtype)
    products = x.to(dtype) @ (x if y is None else y).to(dtype).T
    logits = scale.to(dtype) * products
    return products, logits if bias is None else logits + bias.to(dtype)


def _masks(which: Pairs, logits: Tensor) -> tuple[Tensor, Tensor]:
    which.check_target(logits.shape[1])
    return which.masks(logits)


def _gradient(
    logits: Tensor, positive: Tensor, excluded: Tensor, of_total: Tensor, of_positive: Tensor
) -> Tensor:
    # a·σ(s) + c = (a + c) − a·σ(−s): nothing cancels where a = −c and σ(s) → 1.
    both = (of_total + of_positive).to(logits.dtype)
    of_total = of_total.to(logits.dtype)
    everywhere = (of_total * logits.sigmoid()).masked_fill_(excluded, 0)
    return torch.where(positive, both - of_total * (-logits).sigmoid(), everywhere)


def _products_of(gradient: Tensor, x: Tensor, y: Tensor | None) -> tuple[Tensor, Tensor]:
    grad_x = gradient @ (x if y is None else y).to(gradient.dtype)
    grad_y = gradient.T @ x.to(gradient.dtype)
    return (grad_x + grad_y if y is None else grad_x), grad_y


# Contract

_INPUTS = (
    f"Tensor x, Tensor? y, Tensor scale, Tensor? bias, {pairs.SCHEMA}, bool multiplies_bfloat16"
)
SCHEMA = (
    f"({_INPUTS}, bool keeps_gradients, str backend) -> "
    "(Tensor total, Tensor positive, Tensor kept, Tensor kept_sums)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor kept, Tensor kept_sums, Tensor grad_total, Tensor grad_positive, "
    "bool[] wanted, str backend) "
    "-> (Tensor grad_x, Tensor grad_y, Tensor grad_scale, Tensor grad_bias)"
)


def fake_forward(x: Tensor, y: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    keeps_gradients = arguments[-2]
    numbers = x.numel() + (0 if y is None else y.numel())
    return (
        x.new_empty((), dtype=torch.float64),
        x.new_empty((), dtype=torch.float64),
        x.new_empty(numbers if keeps_gradients else 0, dtype=torch.float32),
        x.new_empty(2 if keeps_gradients else 0, dtype=torch.float64),
    )


def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:4], arguments[-2])


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.multiplies_bfloat16, _, ctx.backend = inputs
    kept, kept_sums = output[2:]
    ctx.mark_non_differentiable(kept, kept_sums)
    ctx.set_materialize_grads(False)  # zeros as large as `kept` otherwise
    ctx.save_for_backward(*tensors, kept, kept_sums)


def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, kept, kept_sums = ctx.saved_tensors
    grad_total, grad_positive = (
        tensors[0].new_zeros((), dtype=torch.float64) if gradient is None else gradient
        for gradient in upstream[:2]
    )
    wanted = list(ctx.needs_input_grad[:4])
    gradients: Sequence[Tensor] = torch.ops.mmcore.sigmoid_similarity_backward(
        *tensors,
        ctx.multiplies_bfloat16,
        kept,
        kept_sums,
        grad_total,
        grad_positive,
        wanted,
        ctx.backend,
    )
    return (*only_wanted(gradients, wanted), *(None for _ in range(8)))


# Backends

define(
    "sigmoid_similarity",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": reference_forward,
        "cpu": cpu.sigmoid_similarity,
        "triton": triton.sigmoid_similarity,
    },
    save=save,
    backward=backward,
)
define(
    "sigmoid_similarity_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": reference_backward,
        "cpu": cpu.sigmoid_similarity_backward,
        "triton": triton.sigmoid_similarity_backward,
    },
)
