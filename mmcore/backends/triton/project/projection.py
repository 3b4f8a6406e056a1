"""Projection head: norm and normalisation by own kernels, the products by torch's.

    x̂ = norm(x)      z = x̂·weightᵀ + bias      output = z / max(‖z‖, eps)

Stored beside the output: x̂ in the dtype that is multiplied, and z in float32, while the call runs.
Products have float32 sums; every result is rounded once.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import ProjectionInputs, as_inputs
from mmcore.backends.triton.l2_normalize import l2_normalize, l2_normalize_backward
from mmcore.backends.triton.launch import row_tile, unit_stride
from mmcore.backends.triton.products import product
from mmcore.backends.triton.project.input_norm import (
    input_norm_backward_kernel,
    input_norm_forward_kernel,
    input_norm_sums_kernel,
)

# Rows that one program adds up for the gradients of a norm's parameters, and its tile.
SLAB_ROWS, SUMS_TILE = 1024, (64, 64)


class Projection(ProjectionInputs):
    """One projection as the kernels take it."""

    __slots__ = ()

    @property
    def product_dtype(self) -> torch.dtype:
        """In which operands are multiplied."""
        is_rounded = self.multiplies_bfloat16 and self.x.dtype == torch.float32
        return torch.bfloat16 if is_rounded else self.x.dtype

    def new(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Memory for a result."""
        return torch.empty(shape, dtype=dtype, device=self.x.device)

    def normed(self) -> tuple[Tensor, Tensor, Tensor]:
        """x̂ as it is multiplied, mean and inverse_std of the rows."""
        x, (rows, columns) = unit_stride(self.x), self.x.shape
        if self.norm == "none":
            return x.to(self.product_dtype), self.new(0), self.new(0)
        mean, inverse_std = self.new(rows if self.norm == "layer" else 0), self.new(rows)
        out = self.new(rows, columns, dtype=self.product_dtype)
        tile = row_tile(columns)
        if rows:
            input_norm_forward_kernel[(triton.cdiv(rows, tile.ROWS),)](
                x, _float_or(self.norm_weight, x), _float_or(self.norm_bias, x), out, mean,
                inverse_std, rows, columns, x.stride(0), self.norm_eps, self.norm == "layer",
                self.norm_weight is not None, self.norm_bias is not None, *tile,
            )  # fmt: skip
        return out, mean, inverse_std


def project(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = Projection(*arguments)
    normed, mean, inverse_std = call.normed()
    z = product(normed, call.weight.to(call.product_dtype).T)
    if call.bias is not None:
        z += call.bias.float()
    if not call.normalize:
        return z.to(call.x.dtype), mean, inverse_std, call.new(0)
    output, inverse_norm = l2_normalize(z, call.eps)
    return output.to(call.x.dtype), mean, inverse_std, inverse_norm


def project_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, output, mean, inverse_std, inverse_norm, grad_output, wanted = arguments
    call = Projection(*described)
    dtype = call.product_dtype
    grad_z = grad_output.float()
    if call.normalize:
        grad_z = l2_normalize_backward(output.float(), inverse_norm, grad_z, call.eps)
    rounded = grad_z.to(dtype)
    gradients: list[Tensor | None] = [None] * 5
    if wanted[1]:
        gradients[1] = product(rounded.T, call.normed()[0])
    if wanted[2]:
        gradients[2] = grad_z.sum(0, dtype=torch.float64)
    if wanted[0] or wanted[3] or wanted[4]:
        grad_normed = product(rounded, call.weight.to(dtype))
        gradients[0], *gradients[3:] = _norm_backward(
            call, mean, inverse_std, grad_normed, wanted[3] or wanted[4]
        )
    return as_inputs(gradients, call.tensors(), wanted)


def _norm_backward(
    call: Projection, mean: Tensor, inverse_std: Tensor, grad: Tensor, needs_sums: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, norm_weight and norm_bias from that of x̂."""
    if call.norm == "none":
        return grad, None, None
    x, (rows, columns) = unit_stride(call.x), call.x.shape
    tile, is_layer = row_tile(columns), call.norm == "layer"
    grad_x = call.new(rows, columns, dtype=call.x.dtype)
    slabs = triton.cdiv(rows, SLAB_ROWS) if needs_sums else 0
    parts = [call.new(slabs, columns, dtype=torch.float64) for _ in range(2)]
    if rows:
        input_norm_backward_kernel[(triton.cdiv(rows, tile.ROWS),)](
            x, _float_or(call.norm_weight, x), mean, inverse_std, grad, grad_x, rows, columns,
            x.stride(0), is_layer, call.norm_weight is not None, *tile,
            # Of a row of one number g − mean(g) is exactly 0 only if both round g alike: g · weight
            # must not be fused into the difference.
            enable_fp_fusion=False,
        )  # fmt: skip
    if slabs:
        input_norm_sums_kernel[(triton.cdiv(columns, SUMS_TILE[1]), slabs)](
            x, mean, inverse_std, grad, *parts, rows, columns, x.stride(0), SLAB_ROWS, is_layer,
            *SUMS_TILE,
        )  # fmt: skip
    return grad_x, parts[0].sum(0), parts[1].sum(0)


def _float_or(vector: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if vector is None else vector.float().contiguous()
