"""The forward of project: norm and normalisation by own kernels, the product by torch's.

    x̂ = norm(x)      z = x̂·weightᵀ + bias      output = z / max(‖z‖, eps)

While the call runs, it stores beside the output x̂, in the dtype that is multiplied, and z, in
float32. Products have float32 sums; every result is rounded once.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.reference.project import Projected, ProjectionInputs
from mmcore.backends.triton.l2_normalize import forward as l2_normalize
from mmcore.backends.triton.launch import row_tile, unit_stride
from mmcore.backends.triton.products import product
from mmcore.backends.triton.project.input_norm import input_norm_forward_kernel


class Normed(NamedTuple):
    """Rows of x after the norm, and what the backward needs of them."""

    rows: Tensor  # x̂, in the dtype that is multiplied
    mean: Tensor
    inverse_std: Tensor


def forward(inputs: ProjectionInputs) -> Projected:
    """The output, and the statistics of rows that the backward needs."""
    normed = norm_rows(inputs)
    z = product(normed.rows, inputs.weight.to(product_dtype(inputs)).T)
    if inputs.bias is not None:
        z += inputs.bias.float()
    if not inputs.normalize:
        nothing = new(inputs, 0)
        return Projected(z.to(inputs.x.dtype), normed.mean, normed.inverse_std, nothing)
    output, inverse_norm = l2_normalize(z, inputs.eps)
    return Projected(output.to(inputs.x.dtype), normed.mean, normed.inverse_std, inverse_norm)


def norm_rows(inputs: ProjectionInputs) -> Normed:
    """x̂, and mean and inverse_std of the rows of x."""
    x, (rows, columns) = unit_stride(inputs.x), inputs.x.shape
    if inputs.norm == "none":
        return Normed(x.to(product_dtype(inputs)), new(inputs, 0), new(inputs, 0))
    is_layer, tile = inputs.norm == "layer", row_tile(columns)
    mean, inverse_std = new(inputs, rows if is_layer else 0), new(inputs, rows)
    out = new(inputs, rows, columns, dtype=product_dtype(inputs))
    if rows:
        input_norm_forward_kernel[(triton.cdiv(rows, tile.ROWS),)](
            x, float_pointer(inputs.norm_weight, x), float_pointer(inputs.norm_bias, x), out, mean,
            inverse_std, rows, columns, x.stride(0), inputs.norm_eps, is_layer,
            inputs.norm_weight is not None, inputs.norm_bias is not None, *tile,
        )  # fmt: skip
    return Normed(out, mean, inverse_std)


def product_dtype(inputs: ProjectionInputs) -> torch.dtype:
    """The dtype in which operands are multiplied."""
    is_rounded = inputs.precision == "medium" and inputs.x.dtype == torch.float32
    return torch.bfloat16 if is_rounded else inputs.x.dtype


def new(inputs: ProjectionInputs, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a result."""
    return torch.empty(shape, dtype=dtype, device=inputs.x.device)


def float_pointer(vector: Tensor | None, dummy: Tensor) -> Tensor:
    """The vector in float32; `dummy`, which kernels do not read, where there is none."""
    return dummy if vector is None else vector.float().contiguous()
