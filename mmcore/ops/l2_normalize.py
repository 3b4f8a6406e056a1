"""L2 normalisation of rows.

    y = x / norm,  norm = max(‖x‖, eps),  inverse_norm = 1 / norm
    grad_x = (grad_y − y ⟨y, grad_y⟩) · inverse_norm   where ‖x‖ > eps, else grad_y / eps

x: (N, D); y: (N, D) in x's dtype; inverse_norm: (N,) in the dtype of the arithmetic, float64 for
float64 and float32 for everything else.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu, selected, triton
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.precision import arithmetic_dtype

# Reference


def reference_forward(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(arithmetic_dtype(x.dtype))
    norm = wide.norm(dim=1).clamp_min(eps)
    return (wide / norm[:, None]).to(x.dtype).contiguous(), norm.reciprocal()


def reference_backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    wide, grad = y.to(inverse_norm.dtype), grad_y.to(inverse_norm.dtype)
    # A clamped norm does not depend on x, so the projection term vanishes.
    is_clamped = inverse_norm >= torch.full_like(inverse_norm, eps).reciprocal()
    along = torch.where(is_clamped, 0, (wide * grad).sum(1))
    grad_x = (grad - wide * along[:, None]) * inverse_norm[:, None]
    return grad_x.to(y.dtype).contiguous()


# Contract

SCHEMA = "(Tensor x, float eps, str backend) -> (Tensor y, Tensor inverse_norm)"
BACKWARD_SCHEMA = (
    "(Tensor y, Tensor inverse_norm, Tensor grad_y, float eps, str backend) -> Tensor grad_x"
)


def fake_forward(x: Tensor, eps: float, backend: str) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=arithmetic_dtype(x.dtype))


def fake_backward(
    y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float, backend: str
) -> Tensor:
    return y.new_empty(y.shape)


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])
    _, ctx.eps, ctx.backend = inputs


def backward(ctx: Any, grad_y: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    y, inverse_norm = ctx.saved_tensors
    (grad_x,) = _backward_op(y, inverse_norm, grad_y, ctx.eps, ctx.backend)
    return grad_x, None, None


# Backends

define(
    "l2_normalize",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": reference_forward,
        "cpu": cpu.l2_normalize,
        "triton": triton.l2_normalize,
    },
)
define(
    "l2_normalize_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": reference_backward,
        "cpu": cpu.l2_normalize_backward,
        "triton": triton.l2_normalize_backward,
    },
)

_backward_op = once_differentiable(torch.ops.mmcore.l2_normalize_backward.default)
_call = differentiable(torch.ops.mmcore.l2_normalize.default, save=save, backward=backward)


def call(x: Tensor, eps: float, *, backend: str | None) -> Tensor:
    """y, differentiable."""
    y: Tensor = _call(x, eps, selected(backend))[0]
    return y
