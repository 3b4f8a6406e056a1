"""L2 normalisation of rows.

    y = x / norm,  norm = max(‖x‖, eps),  inverse_norm = 1 / norm
    grad_x = (grad_y − y ⟨y, grad_y⟩) · inverse_norm   where ‖x‖ > eps, else grad_y / eps

x: (N, D); y: (N, D) in x's dtype; inverse_norm: (N,) in the dtype of the arithmetic, float64 for
float64 and float32 for everything else.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmcore.backends import implementation, selected
from mmcore.backends.families import Normalized
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.flops import no_flops


def run_forward(backend: str, x: Tensor, eps: float) -> Normalized:
    found: Normalized = implementation(backend, "l2_normalize").forward(x, eps)
    return found


def run_backward(
    backend: str, y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float
) -> Tensor:
    module = implementation(backend, "l2_normalize")
    grad_x: Tensor = module.backward(y, inverse_norm, grad_y, eps)
    return grad_x


def fake_forward(x: Tensor, eps: float, backend: str) -> Normalized:
    dtype = arithmetic_dtype(x.dtype)
    return Normalized(x.new_empty(x.shape), x.new_empty(x.shape[0], dtype=dtype))


def fake_backward(
    y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float, backend: str
) -> Tensor:
    return y.new_empty(y.shape)


def save(ctx: Any, inputs: tuple[Tensor, float, str], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*output)
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # zeros for inverse_norm otherwise
    _, ctx.eps, ctx.backend = inputs


def backward(ctx: Any, grad_y: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad_y is None:
        return None, None, None
    y, inverse_norm = ctx.saved_tensors
    (grad_x,) = _backward_op(y, inverse_norm, grad_y, ctx.eps, ctx.backend)
    return grad_x, None, None


# No Family: the backward reads what the forward returned, and not x, whose memory can go.
_op = define(
    "l2_normalize",
    "(Tensor x, float eps, str backend) -> (Tensor y, Tensor inverse_norm)",
    fake=fake_forward,
    run=run_forward,
    flops=no_flops,
    decomposes=True,
)
_backward = define(
    "l2_normalize_backward",
    "(Tensor y, Tensor inverse_norm, Tensor grad_y, float eps, str backend) -> Tensor grad_x",
    fake=fake_backward,
    run=run_backward,
    flops=no_flops,
)

_backward_op = once_differentiable(_backward)
_call = differentiable(_op, save=save, backward=backward)


def call(x: Tensor, eps: float, *, backend: str | None) -> Tensor:
    """y, differentiable."""
    y: Tensor = _call(x, eps, selected(backend))[0]
    return y
