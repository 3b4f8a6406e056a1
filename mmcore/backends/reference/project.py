"""project in plain torch; the formulas: ops/project.py."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmcore.backends.inputs import Gradients, arithmetic_dtype
from mmcore.backends.reference import l2_normalize


class ProjectionInputs(NamedTuple):
    """One projection."""

    x: Tensor  # (N, K)
    weight: Tensor  # (D, K)
    bias: Tensor | None  # (D,)
    norm: str
    norm_weight: Tensor | None  # (K,)
    norm_bias: Tensor | None  # (K,)
    norm_eps: float
    normalize: bool
    eps: float
    precision: str = "highest"

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that a gradient may be wanted of."""
        return self.x, self.weight, self.bias, self.norm_weight, self.norm_bias


class Projected(NamedTuple):
    """What project returns; what does not apply is empty."""

    output: Tensor  # (N, D), in the dtype of x
    mean: Tensor  # (N,) of a row of x, layer norm only
    inverse_std: Tensor  # (N,) 1/√(variance + norm_eps)
    inverse_norm: Tensor  # (N,) 1 / max(‖z‖, eps)


class ProjectionUpstream(NamedTuple):
    """The gradient of the output."""

    output: Tensor


class ProjectionWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    weight: bool
    bias: bool
    norm_weight: bool
    norm_bias: bool


def forward(inputs: ProjectionInputs) -> Projected:
    wide = inputs.x.to(arithmetic_dtype(inputs.x.dtype))
    mean, inverse_std, inverse_norm = (wide.new_empty(0) for _ in range(3))
    centred = wide
    if inputs.norm == "layer":
        mean = wide.mean(1)
        # What rounding took from the mean, every deviation would miss.
        mean = mean + (wide - mean[:, None]).mean(1)
        centred = wide - mean[:, None]
    if inputs.norm != "none":
        inverse_std = (centred.square().mean(1) + inputs.norm_eps).rsqrt()
    normed = _affine(_normed(wide, mean, inverse_std), inputs.norm_weight, inputs.norm_bias)
    output = normed @ inputs.weight.to(wide.dtype).T
    if inputs.bias is not None:
        output = output + inputs.bias.to(wide.dtype)
    if inputs.normalize:
        output, inverse_norm = l2_normalize.forward(output, inputs.eps)
    return Projected(output.to(inputs.x.dtype), mean, inverse_std, inverse_norm)


def backward(
    inputs: ProjectionInputs, projected: Projected, upstream: ProjectionUpstream,
    wanted: ProjectionWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    output, mean, inverse_std, inverse_norm = projected
    dtype = arithmetic_dtype(inputs.x.dtype)
    grad_z = upstream.output.to(dtype)
    if inputs.normalize:
        grad_z = l2_normalize.backward(output.to(dtype), inverse_norm, grad_z, inputs.eps)
    normed = _normed(inputs.x.to(dtype), mean, inverse_std)
    grad_weight = grad_z.T @ _affine(normed, inputs.norm_weight, inputs.norm_bias)
    grad_affine = grad_z @ inputs.weight.to(dtype)
    grad_x = grad_affine
    if inputs.norm != "none":
        grad_normed = _affine(grad_affine, inputs.norm_weight, None)
        grad_x = grad_normed - normed * (grad_normed * normed).mean(1, keepdim=True)
        if inputs.norm == "layer":
            grad_x = grad_x - grad_normed.mean(1, keepdim=True)
        grad_x = grad_x * inverse_std[:, None]
    grad_norm_weight = (grad_affine * normed).sum(0)
    return grad_x, grad_weight, grad_z.sum(0), grad_norm_weight, grad_affine.sum(0)


def _normed(wide: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    centred = wide - mean[:, None] if mean.numel() else wide
    return centred * inverse_std[:, None] if inverse_std.numel() else centred


def _affine(normed: Tensor, norm_weight: Tensor | None, norm_bias: Tensor | None) -> Tensor:
    if norm_weight is not None:
        normed = normed * norm_weight.to(normed.dtype)
    return normed if norm_bias is None else normed + norm_bias.to(normed.dtype)
