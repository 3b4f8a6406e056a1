"""Projection head: optional input norm, linear map, optional L2 normalisation of the output.

    x̂ = norm(x)      z = x̂ · weightᵀ + bias      output = z / max(‖z‖, eps)

x: (N, K); weight: (D, K); bias: (D,); norm_weight, norm_bias: (K,); output: (N, D) in x's dtype.
`norm` is "none", "layer" or "rms". Beside the output the op returns what its backward needs, each
(N,), or empty where it does not apply: the rows' mean and inverse_std = 1/√(variance + norm_eps),
and inverse_norm = 1 / max(‖z‖, eps). With `multiplies_bfloat16` a backend may round the operands of
the products to bfloat16; the reference does not. `wanted` says which gradients are computed; the
others come back empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu, selected, triton
from mmcore.ops import l2_normalize
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.precision import arithmetic_dtype, autocast_dtype, multiplies_bfloat16

# Reference


def reference_forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    normalize: bool,
    eps: float,
    _multiplies_bfloat16: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    wide = x.to(arithmetic_dtype(x.dtype))
    mean, inverse_std, inverse_norm = (wide.new_empty(0) for _ in range(3))
    centred = wide
    if norm == "layer":
        mean = wide.mean(1)
        # What rounding took from the mean, every deviation would miss.
        mean = mean + (wide - mean[:, None]).mean(1)
        centred = wide - mean[:, None]
    if norm != "none":
        inverse_std = (centred.square().mean(1) + norm_eps).rsqrt()
    normed = _affine(_normed(wide, mean, inverse_std), norm_weight, norm_bias)
    output = normed @ weight.to(wide.dtype).T
    if bias is not None:
        output = output + bias.to(wide.dtype)
    if normalize:
        output, inverse_norm = l2_normalize.reference_forward(output, eps)
    return output.to(x.dtype), mean, inverse_std, inverse_norm


def reference_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    normalize: bool,
    eps: float,
    _multiplies_bfloat16: bool,
    output: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    inverse_norm: Tensor,
    grad_output: Tensor,
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    dtype = arithmetic_dtype(x.dtype)
    grad_z = grad_output.to(dtype)
    if normalize:
        grad_z = l2_normalize.reference_backward(output.to(dtype), inverse_norm, grad_z, eps)
    normed = _normed(x.to(dtype), mean, inverse_std)
    grad_weight = grad_z.T @ _affine(normed, norm_weight, norm_bias)
    grad_affine = grad_z @ weight.to(dtype)
    grad_x = grad_affine
    if norm != "none":
        grad_normed = _affine(grad_affine, norm_weight, None)
        grad_x = grad_normed - normed * (grad_normed * normed).mean(1, keepdim=True)
        if norm == "layer":
            grad_x = grad_x - grad_normed.mean(1, keepdim=True)
        grad_x = grad_x * inverse_std[:, None]
    of_norm_weight = (grad_affine * normed).sum(0)
    gradients = (grad_x, grad_weight, grad_z.sum(0), of_norm_weight, grad_affine.sum(0))
    inputs = (x, weight, bias, norm_weight, norm_bias)
    return tuple(
        x.new_empty(0) if like is None or not is_wanted else gradient.to(like.dtype)
        for gradient, like, is_wanted in zip(gradients, inputs, wanted, strict=True)
    )


def _normed(wide: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    centred = wide - mean[:, None] if mean.numel() else wide
    return centred * inverse_std[:, None] if inverse_std.numel() else centred


def _affine(normed: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
    if norm_weight is not None:
        normed = normed * norm_weight.to(normed.dtype)
    return normed if norm_bias is None else normed + norm_bias.to(normed.dtype)


# Contract

_INPUTS = (
    "Tensor x, Tensor weight, Tensor? bias, str norm, Tensor? norm_weight, Tensor? norm_bias, "
    "float norm_eps, bool normalize, float eps, bool multiplies_bfloat16"
)
SCHEMA = (
    f"({_INPUTS}, str backend) "
    "-> (Tensor output, Tensor mean, Tensor inverse_std, Tensor inverse_norm)"
)
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor output, Tensor mean, Tensor inverse_std, Tensor inverse_norm, "
    "Tensor grad_output, bool[] wanted, str backend) -> (Tensor grad_x, Tensor grad_weight, "
    "Tensor grad_bias, Tensor grad_norm_weight, Tensor grad_norm_bias)"
)


def fake_forward(x: Tensor, weight: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    _, norm, _, _, _, normalize, *_ = arguments
    rows, dtype = x.shape[0], arithmetic_dtype(x.dtype)
    return (
        x.new_empty(rows, weight.shape[0]),
        x.new_empty(rows if norm == "layer" else 0, dtype=dtype),
        x.new_empty(rows if norm != "none" else 0, dtype=dtype),
        x.new_empty(rows if normalize else 0, dtype=dtype),
    )


def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    x, weight, bias, _, norm_weight, norm_bias = arguments[:6]
    return fake_gradients((x, weight, bias, norm_weight, norm_bias), arguments[-2])


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.norm, norm_weight, norm_bias, *ctx.settings, ctx.backend = inputs
    ctx.save_for_backward(x, weight, bias, norm_weight, norm_bias, *output)
    ctx.mark_non_differentiable(*output[1:])


def backward(ctx: Any, grad_output: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    x, weight, bias, norm_weight, norm_bias, *outputs = ctx.saved_tensors
    needed = ctx.needs_input_grad
    wanted = [*needed[:3], *needed[4:6]]
    gradients: Sequence[Tensor] = _backward_op(
        x, weight, bias, ctx.norm, norm_weight, norm_bias, *ctx.settings, *outputs, grad_output,
        wanted, ctx.backend,
    )  # fmt: skip
    grad_x, grad_weight, grad_bias, *grad_norm = only_wanted(gradients, wanted)
    return (grad_x, grad_weight, grad_bias, None, *grad_norm, *(None for _ in range(5)))


# Backends

define(
    "project",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": reference_forward,
        "cpu": cpu.project,
        "triton": triton.project,
    },
)
define(
    "project_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": reference_backward,
        "cpu": cpu.project_backward,
        "triton": triton.project_backward,
    },
)

_backward_op = once_differentiable(torch.ops.mmcore.project_backward.default)
_call = differentiable(torch.ops.mmcore.project.default, save=save, backward=backward)


def call(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    *,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    normalize: bool,
    eps: float,
    backend: str | None,
) -> Tensor:
    """The output, differentiable; under autocast in its dtype."""
    dtype = autocast_dtype(x)
    output: Tensor = _call(
        x, weight, bias, norm, norm_weight, norm_bias, norm_eps, normalize, eps,
        dtype == torch.bfloat16 or multiplies_bfloat16(x), selected(backend),
    )[0]  # fmt: skip
    return output if dtype is None else output.to(dtype)
