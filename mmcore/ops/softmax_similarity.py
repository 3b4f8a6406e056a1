"""Statistics of the similarity matrix that softmax objectives are made of.

    s_ij = scale·⟨x_i, y_j⟩ + bias
    row_lse_i = log Σ_j exp s_ij        row_pos_i = s_i,target(i)
    col_lse_j = log Σ_i exp s_ij        col_pos_j = Σ_{i: target(i) = j} s_ij

With a, b, c, d the upstream gradients of row_lse, col_lse, row_pos and col_pos:

    G_ij = a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j) + [j = target(i)]·(c_i + d_j)
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩
    grad_bias = Σ_ij G_ij

The positive is subtracted inside G, before anything is rounded: as training converges
exp(s − lse) → 1 and the gradient is the small difference.

x: (N, D); y: (M, D); scale, bias: 0-D; target: (N,) int64 in [-1, M), -1 meaning no positive.
The statistics are float64 for every input dtype: lse − pos is the loss, and at scale 100 the
rounding of lse to float32 alone, 4e-6, exceeds the loss of a converged model. They are O(N + M).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu
from mmcore.ops.define import define
from mmcore.ops.precision import arithmetic_dtype

# Reference


def reference_forward(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    _check_target(target, y.shape[0])
    logits = _logits(_products(x, y), scale, bias)
    has_positive, column = target >= 0, target.clamp_min(0)
    positive = logits.gather(1, column[:, None])[:, 0].double()
    row_pos = torch.where(has_positive, positive, 0)
    col_pos = row_pos.new_zeros(y.shape[0]).index_add(0, column, row_pos)
    return _log_sum_exp(logits, 1), _log_sum_exp(logits, 0), row_pos, col_pos


def reference_backward(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    target: Tensor,
    row_lse: Tensor,
    col_lse: Tensor,
    grad_row_lse: Tensor,
    grad_col_lse: Tensor,
    grad_row_pos: Tensor,
    grad_col_pos: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    products = _products(x, y)
    logits = _logits(products, scale, bias)
    gradient = _weighted_softmax(logits, row_lse[:, None], grad_row_lse[:, None])
    gradient += _weighted_softmax(logits, col_lse[None], grad_col_lse[None])
    # At a positive, softmax − 1 may be the difference of equal numbers: formed in float64.
    row = torch.nonzero(target >= 0)[:, 0]
    column = target[row]
    positive = logits[row, column].double()
    gradient[row, column] = (
        grad_row_lse[row] * (positive - row_lse[row]).exp() + grad_row_pos[row]
        + grad_col_lse[column] * (positive - col_lse[column]).exp() + grad_col_pos[column]
    ).to(gradient.dtype)  # fmt: skip
    grad_products = scale.to(logits.dtype) * gradient
    return (
        (grad_products @ y.to(logits.dtype)).to(x.dtype),
        (grad_products.T @ x.to(logits.dtype)).to(y.dtype),
        (gradient * products).sum().to(scale.dtype),
        gradient.sum().to(scale.dtype if bias is None else bias.dtype),
    )


def _check_target(target: Tensor, columns: int) -> None:
    lowest, highest = target.min().item(), target.max().item()
    if lowest < -1 or highest >= columns:
        outside = lowest if lowest < -1 else highest
        raise ValueError(f"target must be in [-1, {columns}), got {outside}")


def _products(x: Tensor, y: Tensor) -> Tensor:
    dtype = arithmetic_dtype(x.dtype)
    return x.to(dtype) @ y.to(dtype).T


def _logits(products: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    logits = scale.to(products.dtype) * products
    return logits if bias is None else logits + bias.to(products.dtype)


def _log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    # Summed in float64, where 1 + tiny is not 1: lse − pos keeps its digits near convergence.
    maximum = logits.amax(dim, keepdim=True)
    total = (logits - maximum).exp_().sum(dim, dtype=torch.float64)
    return maximum.squeeze(dim).double() + total.log()


def _weighted_softmax(logits: Tensor, lse: Tensor, weight: Tensor) -> Tensor:
    # exp(logits − lse) with a float64 lse in the logits' dtype: its rounding moves into the weight.
    rounded = lse.to(logits.dtype)
    return (logits - rounded).exp_() * (weight * (rounded.double() - lse).exp()).to(logits.dtype)


# Contract

_INPUTS = "Tensor x, Tensor y, Tensor scale, Tensor? bias, Tensor target"
SCHEMA = (
    f"({_INPUTS}, str backend) -> (Tensor row_lse, Tensor col_lse, Tensor row_pos, Tensor col_pos)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor row_lse, Tensor col_lse, Tensor grad_row_lse, Tensor grad_col_lse, "
    "Tensor grad_row_pos, Tensor grad_col_pos, str backend) "
    "-> (Tensor grad_x, Tensor grad_y, Tensor grad_scale, Tensor grad_bias)"
)


def fake_forward(x: Tensor, y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    shapes = (x.shape[0], y.shape[0]) * 2
    return tuple(x.new_empty(rows, dtype=torch.float64) for rows in shapes)


def fake_backward(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, *arguments: Any
) -> tuple[Tensor, ...]:
    return (
        x.new_empty(x.shape),
        y.new_empty(y.shape),
        scale.new_empty(()),
        (scale if bias is None else bias).new_empty(()),
    )


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend = inputs
    row_lse, col_lse, _, _ = output
    ctx.save_for_backward(*tensors, row_lse, col_lse)


def backward(ctx: Any, *grad_statistics: Tensor) -> tuple[Tensor | None, ...]:
    has_bias = ctx.saved_tensors[3] is not None
    grad_x, grad_y, grad_scale, grad_bias = torch.ops.mmcore.softmax_similarity_backward(
        *ctx.saved_tensors, *grad_statistics, ctx.backend
    )
    return grad_x, grad_y, grad_scale, grad_bias if has_bias else None, None, None


# Backends

define(
    "softmax_similarity",
    SCHEMA,
    fake=fake_forward,
    implementations={"reference": reference_forward, "cpu": cpu.softmax_similarity},
    save=save,
    backward=backward,
)
define(
    "softmax_similarity_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={"reference": reference_backward, "cpu": cpu.softmax_similarity_backward},
)
