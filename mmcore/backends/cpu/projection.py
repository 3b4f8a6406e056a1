"""Launches the kernels of normalisation and projection.

They compute in float32: bfloat16 and float16 inputs are widened, and every result is rounded once,
to the input's dtype.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from mmcore.backends.cpu.arrays import new, read, threads
from mmcore.backends.cpu.module import _C


def l2_normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, inverse_norm = new(x.shape), new(x.shape[:1])
    _C.l2_normalize_forward(read(x), eps, y.numpy(), inverse_norm.numpy(), threads())
    return y.to(x.dtype), inverse_norm


def l2_normalize_backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    grad_x = new(y.shape)
    _C.l2_normalize_backward(
        read(y), read(inverse_norm), read(grad_y), eps, grad_x.numpy(), threads()
    )
    return grad_x.to(y.dtype)


def project(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    normalize: bool,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.shape[0]
    output = new((rows, weight.shape[0]))
    mean = new((rows if norm == "layer" else 0,))
    inverse_std = new((rows if norm != "none" else 0,))
    inverse_norm = new((rows if normalize else 0,))
    _C.project_forward(
        read(x), norm, _read_or_none(norm_weight), _read_or_none(norm_bias), norm_eps,
        read(weight), _read_or_none(bias), eps, output.numpy(),
        _read_or_none(mean, norm == "layer"), _read_or_none(inverse_std, norm != "none"),
        _read_or_none(inverse_norm, normalize), threads(),
    )  # fmt: skip
    return output.to(x.dtype), mean, inverse_std, inverse_norm


def project_backward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    norm: str,
    norm_weight: Tensor | None,
    norm_bias: Tensor | None,
    norm_eps: float,
    normalize: bool,
    eps: float,
    output: Tensor,
    mean: Tensor,
    inverse_std: Tensor,
    inverse_norm: Tensor,
    grad_output: Tensor,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    grad_x, grad_weight = new(x.shape), new(weight.shape)
    vectors = [new((0,) if v is None else v.shape) for v in (bias, norm_weight, norm_bias)]
    grad_bias, grad_norm_weight, grad_norm_bias = vectors
    _C.project_backward(
        read(x), norm, _read_or_none(norm_weight), _read_or_none(norm_bias), norm_eps,
        read(weight), eps, read(output), _read_or_none(mean, norm == "layer"),
        _read_or_none(inverse_std, norm != "none"), _read_or_none(inverse_norm, normalize),
        read(grad_output), grad_x.numpy(), grad_weight.numpy(),
        _read_or_none(grad_bias, bias is not None),
        _read_or_none(grad_norm_weight, norm_weight is not None),
        _read_or_none(grad_norm_bias, norm_bias is not None), threads(),
    )  # fmt: skip
    return (
        grad_x.to(x.dtype),
        grad_weight.to(weight.dtype),
        *(
            gradient if parameter is None else gradient.to(parameter.dtype)
            for gradient, parameter in zip(vectors, (bias, norm_weight, norm_bias), strict=True)
        ),
    )  # type: ignore[return-value]


def _read_or_none(tensor: Tensor | None, is_used: bool = True) -> Any:
    return read(tensor) if tensor is not None and is_used else None
