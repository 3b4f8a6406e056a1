"""Launches the compiled CPU kernels: tensors in, tensors out, no mathematics.

The kernels compute in float32. bfloat16 and float16 inputs are widened, and every result is rounded
once, to the input's dtype; statistics of the similarity matrix stay float64.
"""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import Tensor

try:
    from mmcore import _C

    missing_module: str | None = None
except ImportError as error:
    _C = None  # type: ignore[assignment]
    missing_module = str(error)

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _lower_instruction_set(name: str) -> None:
    if not _C.select_instruction_set(name):
        available = ", ".join(_C.instruction_sets())
        raise ValueError(
            f"MMCORE_CPU_ISA must be one that was built and that this processor has "
            f"({available}), got {name!r}"
        )


if _C is not None and os.environ.get("MMCORE_CPU_ISA"):
    _lower_instruction_set(os.environ["MMCORE_CPU_ISA"])


def obstacle(x: Tensor) -> str | None:
    """Why the CPU kernels cannot serve `x`; None where they can."""
    if missing_module is not None:
        return f"the compiled module mmcore._C could not be imported ({missing_module})"
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}, and only the CPU has compiled kernels"
    if x.dtype not in DTYPES:
        return f"the CPU kernels take float32, bfloat16 and float16, got {_dtype_name(x.dtype)}"
    return None


def instruction_sets() -> list[str]:
    """The instruction sets that were built and that this processor has, the one in use first."""
    if missing_module is not None:
        return []
    return sorted(_C.instruction_sets(), key=lambda name: name != _C.instruction_set())


def measure_fma_peak() -> float:
    """GFLOP/s of multiply-adds that touch no memory, on torch's threads: the kernels' roof."""
    if missing_module is not None:
        raise RuntimeError(f"mmcore._C could not be imported ({missing_module})")
    return _C.measure_fma_peak(torch.get_num_threads())


def l2_normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, inverse_norm = _new(x.shape), _new(x.shape[:1])
    _C.l2_normalize_forward(_read(x), eps, y.numpy(), inverse_norm.numpy(), _threads())
    return y.to(x.dtype), inverse_norm


def l2_normalize_backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    grad_x = _new(y.shape)
    _C.l2_normalize_backward(
        _read(y), _read(inverse_norm), _read(grad_y), eps, grad_x.numpy(), _threads()
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
    output = _new((rows, weight.shape[0]))
    mean = _new((rows if norm == "layer" else 0,))
    inverse_std = _new((rows if norm != "none" else 0,))
    inverse_norm = _new((rows if normalize else 0,))
    _C.project_forward(
        _read(x), norm, _read_or_none(norm_weight), _read_or_none(norm_bias), norm_eps,
        _read(weight), _read_or_none(bias), eps, output.numpy(),
        _read_or_none(mean, norm == "layer"), _read_or_none(inverse_std, norm != "none"),
        _read_or_none(inverse_norm, normalize), _threads(),
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
    grad_x, grad_weight = _new(x.shape), _new(weight.shape)
    vectors = [_new((0,) if v is None else v.shape) for v in (bias, norm_weight, norm_bias)]
    grad_bias, grad_norm_weight, grad_norm_bias = vectors
    _C.project_backward(
        _read(x), norm, _read_or_none(norm_weight), _read_or_none(norm_bias), norm_eps,
        _read(weight), eps, _read(output), _read_or_none(mean, norm == "layer"),
        _read_or_none(inverse_std, norm != "none"), _read_or_none(inverse_norm, normalize),
        _read(grad_output), grad_x.numpy(), grad_weight.numpy(),
        _read_or_none(grad_bias, bias is not None),
        _read_or_none(grad_norm_weight, norm_weight is not None),
        _read_or_none(grad_norm_bias, norm_bias is not None), _threads(),
    )  # fmt: skip
    return (
        grad_x.to(x.dtype),
        grad_weight.to(weight.dtype),
        *(
            gradient if parameter is None else gradient.to(parameter.dtype)
            for gradient, parameter in zip(vectors, (bias, norm_weight, norm_bias), strict=True)
        ),
    )  # type: ignore[return-value]


def softmax_similarity(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor | None, target: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row_lse, col_lse, row_pos, col_pos = (
        torch.empty(rows, dtype=torch.float64)
        for rows in (x.shape[0], y.shape[0], x.shape[0], y.shape[0])
    )
    _C.softmax_similarity_forward(
        _read(x), _read(y), _number(scale), _number(bias), _vector(target),
        row_lse.numpy(), col_lse.numpy(), row_pos.numpy(), col_pos.numpy(), _threads(),
    )  # fmt: skip
    return row_lse, col_lse, row_pos, col_pos


def softmax_similarity_backward(
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
    grad_x, grad_y = torch.zeros(x.shape), torch.zeros(y.shape)
    grad_scale, grad_bias = _C.softmax_similarity_backward(
        _read(x), _read(y), _number(scale), _number(bias), _vector(target), _vector(row_lse),
        _vector(col_lse), _vector(grad_row_lse), _vector(grad_col_lse), _vector(grad_row_pos),
        _vector(grad_col_pos), grad_x.numpy(), grad_y.numpy(), _threads(),
    )  # fmt: skip
    return (
        grad_x.to(x.dtype),
        grad_y.to(y.dtype),
        torch.tensor(grad_scale, dtype=scale.dtype),
        torch.tensor(grad_bias, dtype=scale.dtype if bias is None else bias.dtype),
    )


def _new(shape: Any) -> Tensor:
    return torch.empty(shape, dtype=torch.float32)


def _read(tensor: Tensor) -> Any:
    """The tensor's memory as a float32 array with unit column stride, copied only if it must be."""
    tensor = tensor.detach().to(torch.float32)
    if tensor.stride(-1) != 1:
        tensor = tensor.contiguous()
    return tensor.numpy()


def _vector(tensor: Tensor) -> Any:
    """The tensor's memory as a dense array of its own dtype."""
    return tensor.detach().contiguous().numpy()


def _read_or_none(tensor: Tensor | None, is_used: bool = True) -> Any:
    return _read(tensor) if tensor is not None and is_used else None


def _number(scalar: Tensor | None) -> float:
    return 0.0 if scalar is None else float(scalar)


def _threads() -> int:
    return torch.get_num_threads()


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
