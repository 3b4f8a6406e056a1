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

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import choose, cpu, kept_tiles, selected, triton
from mmcore.backends.inputs import as_inputs
from mmcore.backends.workspace import current
from mmcore.ops import bias_gradient, pairs
from mmcore.ops.autograd import differentiable, once_differentiable, wants_gradient
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.log_sum_exp import log_sum_exp, weighted_softmax
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
    counted: Tensor

    def at_counted(self) -> Tensor:
        return self.logits.masked_fill(~self.counted, -torch.inf)

    def of_positives(self, dim: int, positives: str) -> Tensor:
        """Log-sum-exp or sum of the logits of positives."""
        if positives == "log_sum_exp":
            return log_sum_exp(self.logits.masked_fill(~self.positive, -torch.inf), dim)
        return self.logits.double().masked_fill(~self.positive, 0).sum(dim)


class Matrix(NamedTuple):
    """The similarity matrix; where y is x, y and the vectors of the columns are those of x."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor | None
    row_bias: Tensor | None
    col_bias: Tensor | None
    pairs: Pairs
    denominator: str

    @staticmethod
    def of(
        x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, row_bias: Tensor | None,
        col_bias: Tensor | None, *arguments: Any,
    ) -> Matrix:  # fmt: skip
        """In the dtype of the arithmetic."""
        dtype = arithmetic_dtype(x.dtype)
        col_bias = row_bias if y is None else col_bias
        bias, row_bias, col_bias = (
            None if each is None else each.to(dtype) for each in (bias, row_bias, col_bias)
        )
        x, y = x.to(dtype), None if y is None else y.to(dtype)
        matrix = Matrix(
            x, x if y is None else y, scale.to(dtype), bias, row_bias, col_bias,
            Pairs(*arguments[:5]), arguments[5],
        )  # fmt: skip
        matrix.pairs.check_target(matrix.y.shape[0])
        return matrix

    def slabs(self) -> Iterator[Slab]:
        for rows in slabs(self.x.shape[0], self.y.shape[0], self.x.device):
            products = self.x[rows] @ self.y.T
            logits = self.scale * products
            logits = logits if self.bias is None else logits + self.bias
            logits = logits if self.row_bias is None else logits + self.row_bias[rows, None]
            logits = logits if self.col_bias is None else logits + self.col_bias
            positive, excluded = self.pairs.of_rows(rows).masks(logits)
            counted = pairs.counted(self.denominator, positive, excluded)
            yield Slab(rows, products, logits, positive, counted)


def reference_forward(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    *_, has_columns, _, positives, kept_size = arguments
    matrix = Matrix.of(*arguments[:12])
    x, columns = matrix.x, matrix.y.shape[0] if has_columns else 0
    row_lse, row_pos = (x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(2))
    nothing, add = (-torch.inf, torch.logaddexp) if positives == "log_sum_exp" else (0.0, torch.add)
    col_lse = x.new_full((columns,), -torch.inf, dtype=torch.float64)
    col_pos = torch.full_like(col_lse, nothing)
    for slab in matrix.slabs():
        row_lse[slab.rows] = log_sum_exp(slab.at_counted(), 1)
        row_pos[slab.rows] = slab.of_positives(1, positives)
        if has_columns:
            col_lse = torch.logaddexp(col_lse, log_sum_exp(slab.at_counted(), 0))
            col_pos = add(col_pos, slab.of_positives(0, positives))
    return row_lse, col_lse, row_pos, col_pos, x.new_empty(kept_size, dtype=torch.float32)


def reference_backward(*arguments: Any) -> tuple[Tensor, ...]:
    likes, has_columns, wanted = arguments[:6], arguments[12], arguments[-1]
    matrix, is_symmetric = Matrix.of(*arguments[:12]), arguments[1] is None
    x, y = matrix.x, matrix.y
    grad_x, grad_y = (z.new_zeros(z.shape) for z in (x, y))
    per_row, per_column = (z.new_zeros(z.shape[0], dtype=torch.float64) for z in (x, y))
    of_scale = per_row.new_zeros(())
    for slab in matrix.slabs():
        gradient = _gradient(slab, matrix.denominator, has_columns, *arguments[14:-1])
        grad_products = matrix.scale * gradient
        grad_x[slab.rows] = grad_products @ y
        grad_y += grad_products.T @ x[slab.rows]
        of_scale += (gradient * slab.products).sum()
        per_row[slab.rows] = gradient.double().sum(1)
        per_column += gradient.double().sum(0)
    of_bias = per_row.sum()
    if is_symmetric:
        grad_x, per_row = grad_x + grad_y, per_row + per_column
    return as_inputs((grad_x, grad_y, of_scale, of_bias, per_row, per_column), likes, wanted)


def _gradient(
    slab: Slab, denominator: str, has_columns: bool, positives: str, *statistics: Tensor
) -> Tensor:
    """G of a slab; `statistics` are those of the forward, what it kept, and their gradients."""
    row_lse, col_lse, row_pos, col_pos, _, *upstream = statistics
    row_lse, row_pos = row_lse[slab.rows], row_pos[slab.rows]
    of_row_lse, of_row_pos = upstream[0][slab.rows], upstream[2][slab.rows]
    logits = slab.logits
    gradient = weighted_softmax(logits, row_lse[:, None], of_row_lse[:, None])
    if has_columns:
        gradient += weighted_softmax(logits, col_lse[None], upstream[1][None])
    gradient.masked_fill_(~slab.counted, 0)
    # At a positive, softmax − 1 may be the difference of equal numbers: formed in float64.
    row, column = torch.nonzero(slab.positive, as_tuple=True)
    logit = logits[row, column].double()
    at_positive = torch.zeros_like(logit)
    sides = [(row, row_lse, of_row_lse, row_pos, of_row_pos)]
    sides += [(column, col_lse, upstream[1], col_pos, upstream[3])] if has_columns else []
    for place, lse, of_lse, pos, of_pos in sides:
        if denominator != "negatives":
            at_positive += _softmax(logit, lse[place], of_lse[place])
        if positives == "log_sum_exp":
            at_positive += _softmax(logit, pos[place], of_pos[place])
        else:
            at_positive += of_pos[place]
    gradient[row, column] = at_positive.to(gradient.dtype)
    return gradient


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
    gradients: Sequence[Tensor] = _backward_op(
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
)
define(
    "softmax_similarity_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": reference_backward,
        "cpu": bias_gradient.with_bias_gradient(cpu.softmax_similarity_backward),
        "triton": triton.softmax_similarity_backward,
    },
)

_backward_op = once_differentiable(torch.ops.mmcore.softmax_similarity_backward.default)
_call = differentiable(torch.ops.mmcore.softmax_similarity.default, save=save, backward=backward)


def call(
    x: Tensor,
    y: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    row_bias: Tensor | None,
    col_bias: Tensor | None,
    which: Pairs,
    *,
    denominator: str,
    has_columns: bool,
    positives: str,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """row_lse, col_lse, row_pos and col_pos, differentiable; the tensors are checked."""
    requested, kept_size = selected(backend), 0
    queries, keys = as_multiplied(x), None if y is None else as_multiplied(y)
    of_bfloat16 = multiplies_bfloat16(queries)
    if wants_gradient(x, y, scale, bias, row_bias, col_bias):
        columns = (x if y is None else y).shape[0]
        kept_size = kept_tiles(
            choose(requested, x), current(x.device.type), x.shape[0], columns, of_bfloat16,
            y is None and not has_columns,
        )  # fmt: skip
    row_lse, col_lse, row_pos, col_pos, _ = _call(
        queries, keys, scale, bias, row_bias, col_bias, *which, denominator, has_columns,
        of_bfloat16, positives, kept_size, requested,
    )  # fmt: skip
    return row_lse, col_lse, row_pos, col_pos
