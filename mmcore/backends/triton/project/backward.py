"""The backward of project: norms by own kernels, the products by torch's.

    grad_weight = grad_zᵀ·x̂      grad_bias = Σ grad_z      grad_x̂ = grad_z·weight

grad_z is the gradient of output before the normalisation (l2_normalize.py); grad_x is that of x̂
before the norm (input_norm.py). The backward computes x̂ again. Products have float32 sums.
"""

from __future__ import annotations

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import Gradients
from mmcore.backends.reference.project import (
    Projected,
    ProjectionInputs,
    ProjectionUpstream,
    ProjectionWanted,
)
from mmcore.backends.triton.inputs import finished
from mmcore.backends.triton.l2_normalize import backward as l2_normalize_backward
from mmcore.backends.triton.launch import row_tile, unit_stride
from mmcore.backends.triton.products import product
from mmcore.backends.triton.project.forward import float_pointer, new, norm_rows, product_dtype
from mmcore.backends.triton.project.input_norm import (
    input_norm_backward_kernel,
    input_norm_sums_kernel,
)

# Rows that one program adds up for the gradients of a norm's parameters, and its tile.
SLAB_ROWS, SUMS_TILE = 1024, (64, 64)


def backward(
    inputs: ProjectionInputs, projected: Projected, upstream: ProjectionUpstream,
    wanted: ProjectionWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x and the parameters; rounded to the dtypes of these, or sums."""
    dtype, grad_z = product_dtype(inputs), upstream.output.float()
    if inputs.normalize:
        grad_z = l2_normalize_backward(
            projected.output.float(), projected.inverse_norm, grad_z, inputs.eps
        )
    operand = grad_z.to(dtype)
    grad_x = grad_weight = grad_bias = grad_norm_weight = grad_norm_bias = None
    if wanted.weight:
        grad_weight = product(operand.T, norm_rows(inputs).rows)
    if wanted.bias:
        grad_bias = grad_z.sum(0, dtype=torch.float64)
    if wanted.x or wanted.norm_weight or wanted.norm_bias:
        grad_normed = product(operand, inputs.weight.to(dtype))
        needs_sums = wanted.norm_weight or wanted.norm_bias
        grad_x, grad_norm_weight, grad_norm_bias = _norm_backward(
            inputs, projected, grad_normed, needs_sums, rounds
        )
    found = (grad_x, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias)
    return finished(found, inputs.tensors(), wanted, rounds)


def _norm_backward(
    inputs: ProjectionInputs, projected: Projected, grad: Tensor, needs_sums: bool, rounds: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Gradients of x, norm_weight and norm_bias from that of x̂."""
    if inputs.norm == "none":
        return grad, None, None
    x, (rows, columns) = unit_stride(inputs.x), inputs.x.shape
    tile, is_layer = row_tile(columns), inputs.norm == "layer"
    grad_x = new(inputs, rows, columns, dtype=x.dtype if rounds else torch.float32)
    slabs = triton.cdiv(rows, SLAB_ROWS) if needs_sums else 0
    parts = [new(inputs, slabs, columns, dtype=torch.float64) for _ in range(2)]
    _, mean, inverse_std, _ = projected
    if rows:
        input_norm_backward_kernel[(triton.cdiv(rows, tile.ROWS),)](
            x, float_pointer(inputs.norm_weight, x), mean, inverse_std, grad, grad_x, rows, columns,
            x.stride(0), is_layer, inputs.norm_weight is not None, *tile,
            # Where all numbers of a row are equal, g − mean(g) is exactly 0 only if both round g
            # alike: g · weight must not be fused into the difference.
            enable_fp_fusion=False,
        )  # fmt: skip
    if slabs:
        input_norm_sums_kernel[(triton.cdiv(columns, SUMS_TILE[1]), slabs)](
            x, mean, inverse_std, grad, *parts, rows, columns, x.stride(0), SLAB_ROWS, is_layer,
            *SUMS_TILE,
        )  # fmt: skip
    return grad_x, parts[0].sum(0), parts[1].sum(0)
