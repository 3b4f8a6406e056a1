"""The forward of project: norm and normalisation by own kernels, the product by torch's.

    x̂ = norm(x)      z = x̂·weightᵀ + bias      output = z / max(‖z‖, eps)

While the call runs, it stores beside the output x̂, in the dtype that is multiplied, and the
product, in float32. Products have float32 sums; every result is rounded once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.reference.project import Projected, ProjectionInputs
from mmcore.backends.triton.inputs import pointer
from mmcore.backends.triton.l2_normalize import normalize_rows
from mmcore.backends.triton.launch import row_tile, unit_stride, whole
from mmcore.backends.triton.products import product
from mmcore.backends.triton.project.input_norm import input_norm_forward_kernel


def forward(inputs: ProjectionInputs) -> Projected:
    """The output, and the statistics of rows that the backward needs."""
    (rows, _), dtype = inputs.x.shape, inputs.x.dtype
    mean = new(inputs, rows if inputs.norm == "layer" else 0)
    inverse_std = new(inputs, 0 if inputs.norm == "none" else rows)
    normed = norm_rows(inputs, mean, inverse_std, has_statistics=False)
    z = product(normed, as_multiplied(inputs.weight, inputs).T)
    if inputs.normalize:
        output, inverse_norm = normalize_rows(z, inputs.bias, inputs.eps, dtype)
        return Projected(output, mean, inverse_std, inverse_norm)
    output = z if z.dtype == dtype else new(inputs, *z.shape, dtype=dtype)
    if inputs.bias is not None:
        torch.add(z, inputs.bias, out=output)  # float32, rounded on its way out
    elif output is not z:
        output.copy_(z)
    return Projected(output, mean, inverse_std, new(inputs, 0))


def norm_rows(
    inputs: ProjectionInputs, mean: Tensor, inverse_std: Tensor, has_statistics: bool
) -> Tensor:
    """x̂, in the dtype that is multiplied; computes the statistics where they are not there."""
    if inputs.norm == "none":
        return as_multiplied(inputs.x, inputs)
    x, (rows, columns) = unit_stride(inputs.x), inputs.x.shape
    tile = row_tile(columns)
    normed = new(inputs, rows, columns, dtype=product_dtype(inputs))
    if rows:
        input_norm_forward_kernel[(whole(rows, tile.ROWS),)](
            x, pointer(inputs.norm_weight, x), pointer(inputs.norm_bias, x), normed, mean,
            inverse_std, rows, columns, x.stride(0), inputs.norm_eps, has_statistics,
            inputs.norm == "layer", inputs.norm_weight is not None, inputs.norm_bias is not None,
            *tile,
        )  # fmt: skip
    return normed


def product_dtype(inputs: ProjectionInputs) -> torch.dtype:
    """The dtype in which operands are multiplied."""
    is_rounded = inputs.precision == "medium" and inputs.x.dtype == torch.float32
    return torch.bfloat16 if is_rounded else inputs.x.dtype


def as_multiplied(operand: Tensor, inputs: ProjectionInputs) -> Tensor:
    """An operand in that dtype."""
    dtype = product_dtype(inputs)
    return operand if operand.dtype == dtype else operand.to(dtype)


def new(inputs: ProjectionInputs, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Memory for a result."""
    return inputs.x.new_empty(*shape, dtype=dtype)
