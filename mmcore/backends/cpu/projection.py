"""Launches the kernels of normalisation and projection.

Rows are read and written in their own dtype, norms and sums are float32, and every result is
rounded once, to the input's dtype.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.backends.cpu.arrays import (
    new,
    rows,
    rows_or_none,
    threads,
    vector,
    vector_or_none,
    zeros,
)
from mmcore.backends.cpu.module import _C
from mmcore.backends.inputs import ProjectionInputs, as_inputs


def l2_normalize(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    y, inverse_norm = new(x.shape, x.dtype), new(x.shape[:1])
    _C.l2_normalize_forward(rows(x), eps, rows(y), vector(inverse_norm), threads())
    return y, inverse_norm


def l2_normalize_backward(y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor:
    grad_x = new(y.shape, y.dtype)
    _C.l2_normalize_backward(
        rows(y), vector(inverse_norm), rows(grad_y), eps, rows(grad_x), threads()
    )
    return grad_x


class Projection(ProjectionInputs):
    """One projection as the compiled module takes it."""

    __slots__ = ()

    def arrays(self) -> Any:
        """What the compiled module takes."""
        return _C.ProjectionInputs(
            rows(self.x), rows(self.weight), vector_or_none(self.bias, torch.float32), self.norm,
            vector_or_none(self.norm_weight, torch.float32),
            vector_or_none(self.norm_bias, torch.float32), self.norm_eps, self.normalize, self.eps,
            self.multiplies_bfloat16,
        )  # fmt: skip


def project(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Projection(*arguments)
    count = call.x.shape[0]
    output = new((count, call.weight.shape[0]), call.x.dtype)
    mean = new(count if call.norm == "layer" else 0)
    inverse_std = new(count if call.norm != "none" else 0)
    inverse_norm = new(count if call.normalize else 0)
    _C.project_forward(
        call.arrays(), rows(output), vector(mean), vector(inverse_std), vector(inverse_norm),
        threads(),
    )  # fmt: skip
    return output, mean, inverse_std, inverse_norm


def project_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, output, mean, inverse_std, inverse_norm, grad_output, wanted = arguments
    call = Projection(*described)
    grad_x = new(call.x.shape, call.x.dtype) if wanted[0] else None
    # float32 sums, but for x, whose rows are finished one by one.
    sums = [
        zeros(like.shape) if like is not None and is_wanted else None
        for like, is_wanted in zip(call.tensors()[1:], wanted[1:], strict=True)
    ]
    grad_weight, grad_bias, grad_norm_weight, grad_norm_bias = sums
    _C.project_backward(
        call.arrays(), rows(output), vector(mean), vector(inverse_std), vector(inverse_norm),
        rows(grad_output), rows_or_none(grad_x), rows_or_none(grad_weight),
        vector_or_none(grad_bias), vector_or_none(grad_norm_weight),
        vector_or_none(grad_norm_bias), threads(),
    )  # fmt: skip
    return as_inputs([grad_x, *sums], call.tensors(), wanted)
