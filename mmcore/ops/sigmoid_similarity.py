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

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.backends import (
    KEEP_GRADIENTS_OF_LABELS,
    KEEP_GRADIENTS_OF_TARGETS,
    choose,
    cpu,
    selected,
    triton,
)
from mmcore.backends.inputs import as_inputs
from mmcore.backends.workspace import current
from mmcore.ops import pairs
from mmcore.ops.autograd import differentiable, once_differentiable, wants_gradient
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.pairs import Pairs
from mmcore.ops.precision import arithmetic_dtype, as_multiplied, multiplies_bfloat16
from mmcore.ops.slabs import slabs

# Reference


class Slab(NamedTuple):
    """Some rows of the matrix."""

    rows: slice
    products: Tensor
    logits: Tensor
    positive: Tensor
    excluded: Tensor


class Matrix(NamedTuple):
    """The similarity matrix; where y is x, y and the vectors of the columns are those of x."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor | None
    pairs: Pairs

    @staticmethod
    def of(
        x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *vectors: Tensor | None
    ) -> Matrix:
        """In the dtype of the arithmetic."""
        dtype = arithmetic_dtype(x.dtype)
        x, y = x.to(dtype), None if y is None else y.to(dtype)
        bias = None if bias is None else bias.to(dtype)
        matrix = Matrix(x, x if y is None else y, scale.to(dtype), bias, Pairs(*vectors))
        matrix.pairs.check_target(matrix.y.shape[0])
        return matrix

    def slabs(self) -> Iterator[Slab]:
        for rows in slabs(self.x.shape[0], self.y.shape[0], self.x.device):
            products = self.x[rows] @ self.y.T
            logits = self.scale * products
            logits = logits if self.bias is None else logits + self.bias
            yield Slab(rows, products, logits, *self.pairs.of_rows(rows).masks(logits))


def reference_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    matrix, is_symmetric = Matrix.of(*arguments[:9]), arguments[1] is None
    keeps_gradients = arguments[-1]
    total, of_positive = (matrix.x.new_zeros((), dtype=torch.float64) for _ in range(2))
    for slab in matrix.slabs():
        # In float64: where training has converged, total − positive is a difference of near equals.
        wide = slab.logits.double()
        total += (-F.logsigmoid(-wide)).masked_fill_(slab.excluded, 0).sum()
        of_positive += wide.masked_fill(~slab.positive, 0).sum()
    if not keeps_gradients:
        return total, of_positive, total.new_empty(0, dtype=torch.float32), total.new_empty(0)
    one = total.new_ones(())
    grad_x, grad_y, *sums = _gradients(matrix, is_symmetric, one, -one)
    kept = grad_x.flatten() if is_symmetric else torch.cat([grad_x.flatten(), grad_y.flatten()])
    return total, of_positive, kept.float(), torch.stack(sums)


def reference_backward(*arguments: Any) -> tuple[Tensor, ...]:
    grad_total, grad_positive, wanted = arguments[-3:]
    matrix, is_symmetric = Matrix.of(*arguments[:9]), arguments[1] is None
    gradients = _gradients(matrix, is_symmetric, grad_total, grad_positive)
    return as_inputs(gradients, arguments[:4], wanted)


def _gradients(
    matrix: Matrix, is_symmetric: bool, of_total: Tensor, of_positive: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of x, y, scale and bias."""
    x, y = matrix.x, matrix.y
    grad_x, grad_y = (z.new_zeros(z.shape) for z in (x, y))
    of_scale, of_bias = (x.new_zeros((), dtype=torch.float64) for _ in range(2))
    for slab in matrix.slabs():
        gradient = _gradient(slab, of_total, of_positive)
        grad_products = matrix.scale * gradient
        grad_x[slab.rows] = grad_products @ y
        grad_y += grad_products.T @ x[slab.rows]
        of_scale += (gradient.double() * slab.products).sum()
        of_bias += gradient.double().sum()
    return (grad_x + grad_y if is_symmetric else grad_x), grad_y, of_scale, of_bias


def _gradient(slab: Slab, of_total: Tensor, of_positive: Tensor) -> Tensor:
    # a·σ(s) + c = (a + c) − a·σ(−s): nothing cancels where a = −c and σ(s) → 1.
    both = (of_total + of_positive).to(slab.logits.dtype)
    of_total = of_total.to(slab.logits.dtype)
    everywhere = (of_total * slab.logits.sigmoid()).masked_fill_(slab.excluded, 0)
    return torch.where(slab.positive, both - of_total * (-slab.logits).sigmoid(), everywhere)


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
    gradients: Sequence[Tensor] = _backward_op(
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

_backward_op = once_differentiable(torch.ops.mmcore.sigmoid_similarity_backward.default)
_call = differentiable(torch.ops.mmcore.sigmoid_similarity.default, save=save, backward=backward)


def call(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    which: Pairs,
    *,
    backend: str | None,
) -> tuple[Tensor, Tensor]:
    """total and positive, differentiable; the tensors are checked."""
    requested = selected(backend)
    users = KEEP_GRADIENTS_OF_LABELS if which.target is None else KEEP_GRADIENTS_OF_TARGETS
    keeps_gradients = wants_gradient(x, y, scale, bias) and choose(requested, x) in users
    numbers = x.numel() + (0 if y is None else y.numel())
    keeps_gradients = keeps_gradients and bool(4 * numbers <= current(x.device.type))
    queries, keys = as_multiplied(x), None if y is None else as_multiplied(y)
    total, positive, _, _ = _call(
        queries, keys, scale, bias, *which, multiplies_bfloat16(queries), keeps_gradients, requested
    )
    return total, positive
