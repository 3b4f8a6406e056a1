"""The backward of project: norms and sums by own kernels, the products by torch's.

    grad_weight = grad_zᵀ·x̂      grad_bias = Σ grad_z      grad_x̂ = grad_z·weight

grad_z is the gradient of output before the normalisation (l2_normalize.py); grad_x is that of x̂
before the norm (input_norm.py). The backward computes x̂ again. Products have float32 sums.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.families import Normalized
from mmcore.backends.inputs import Gradients
from mmcore.backends.reference.project import (
    Projected,
    ProjectionInputs,
    ProjectionUpstream,
    ProjectionWanted,
)
from mmcore.backends.triton.inputs import pointer
from mmcore.backends.triton.l2_normalize import normalize_rows_backward
from mmcore.backends.triton.launch import row_tile, unit_stride, whole
from mmcore.backends.triton.products import product
from mmcore.backends.triton.project.forward import as_multiplied, new, norm_rows, product_dtype
from mmcore.backends.triton.project.input_norm import NormedRows
from mmcore.backends.triton.project.parameter_sums import (
    OutputRows,
    Rounding,
    Steps,
    Vectors,
    project_parameters_kernel,
    project_rows_kernel,
)

# Slabs have this many rows, or more where there would be more slabs than MOST_SLABS.
SLAB_ROWS, MOST_SLABS = 256, 256
# Rows and columns that a program adds up at a time; slabs that it adds up at a time.
SUMS_TILE, SLABS_AT_A_TIME = (32, 64), 32
ROUNDED_NUMBERS = 4096


class Sums(NamedTuple):
    """Which vectors have gradients, and how their sums are cut."""

    has_norm: bool
    has_bias: bool
    norm_tiles: int  # of columns
    bias_tiles: int
    slab_rows: int
    slabs: int
    numbers: int  # that a slab has


def backward(
    inputs: ProjectionInputs, projected: Projected, upstream: ProjectionUpstream,
    wanted: ProjectionWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x and the parameters; rounded to the dtypes of these, or sums."""
    sums = sums_of(inputs, wanted)
    grad_z, output = _output_backward(inputs, projected, upstream.output, sums)
    grad_weight = grad_normed = None
    if wanted.weight:
        normed = norm_rows(inputs, projected.mean, projected.inverse_std, has_statistics=True)
        grad_weight = product(grad_z.T, normed)
    if wanted.x or sums.has_norm:
        grad_normed = product(grad_z, as_multiplied(inputs.weight, inputs))
    grad_x, parts = _launch_rows(inputs, projected, output, grad_normed, sums, wanted.x, rounds)
    grad_weight, vectors = _launch_parameters(inputs, grad_weight, parts, sums, rounds)
    grad_bias = vectors.bias if sums.has_bias else None
    of_norm = (vectors.norm_weight, vectors.norm_bias) if sums.has_norm else (None, None)
    return grad_x, grad_weight, grad_bias, *of_norm


def sums_of(inputs: ProjectionInputs, wanted: ProjectionWanted) -> Sums:
    """What has to be summed over rows."""
    rows, columns = inputs.x.shape
    has_norm = inputs.norm != "none" and (wanted.norm_weight or wanted.norm_bias)
    has_bias = wanted.bias and inputs.bias is not None
    slab_rows = max(SLAB_ROWS, whole(rows, MOST_SLABS * SUMS_TILE[0]) * SUMS_TILE[0])
    columns, width = columns if has_norm else 0, inputs.weight.shape[0] if has_bias else 0
    return Sums(
        has_norm, has_bias, whole(columns, SUMS_TILE[1]), whole(width, SUMS_TILE[1]), slab_rows,
        whole(rows, slab_rows), 2 * columns + width,
    )  # fmt: skip


def _output_backward(
    inputs: ProjectionInputs, projected: Projected, grad: Tensor, sums: Sums
) -> tuple[Tensor, OutputRows]:
    """grad_z in the dtype that is multiplied, and what its sums are computed from."""
    grad, inverse_norm = unit_stride(grad), projected.inverse_norm
    if not inputs.normalize:
        unused = OutputRows(grad, inverse_norm, inverse_norm, grad, grad.stride(0))
        return as_multiplied(grad, inputs), unused
    y = projected.output.contiguous()
    along = new(inputs, len(y)) if sums.has_bias else None
    grad_z = normalize_rows_backward(
        Normalized(y, inverse_norm), grad, along, inputs.eps, product_dtype(inputs)
    )
    along = inverse_norm if along is None else along
    return grad_z, OutputRows(y, inverse_norm, along, grad, grad.stride(0))


def _launch_rows(
    inputs: ProjectionInputs, projected: Projected, output: OutputRows, grad: Tensor | None,
    sums: Sums, wants_x: bool, rounds: bool,
) -> tuple[Tensor | None, Tensor]:  # fmt: skip
    """The gradient of x from that of x̂, and the sums of slabs."""
    x, (rows, columns), width = unit_stride(inputs.x), inputs.x.shape, inputs.weight.shape[0]
    dtype, tile = inputs.x.dtype if rounds else torch.float32, row_tile(columns)
    has_rows = wants_x and inputs.norm != "none"
    grad_x = grad if wants_x else None
    if has_rows:
        grad_x = new(inputs, rows, columns, dtype=dtype)
    elif grad_x is not None and grad_x.dtype != dtype:
        grad_x = grad_x.to(dtype)
    tiles = sums.norm_tiles + sums.bias_tiles
    parts = new(inputs, sums.slabs, sums.numbers, dtype=torch.float64) if tiles else output.y
    row_programs = whole(rows, tile.ROWS) if has_rows else 0
    programs = row_programs + tiles * sums.slabs
    if programs:
        beside = output.y  # for what the kernel does not read
        project_rows_kernel[(programs,)](
            NormedRows(
                x, projected.mean, projected.inverse_std, pointer(inputs.norm_weight, x),
                x.stride(0),
            ),
            output, beside if grad is None else grad, beside if grad_x is None else grad_x, parts,
            rows, columns, width, sums.numbers, row_programs, sums.norm_tiles, max(tiles, 1),
            sums.slab_rows,
            Steps(
                has_rows, inputs.norm == "layer", inputs.norm_weight is not None, sums.has_norm,
                sums.has_bias, inputs.normalize,
            ),
            *tile, *SUMS_TILE,
            # Where all numbers of a row are equal, g − mean(g) is exactly 0 only if both round g
            # alike: g · weight must not be fused into the difference.
            enable_fp_fusion=False,
        )  # fmt: skip
    return grad_x, parts


def _launch_parameters(
    inputs: ProjectionInputs, total: Tensor | None, parts: Tensor, sums: Sums, rounds: bool
) -> tuple[Tensor | None, Vectors]:
    """The gradients of the parameters; `total` is that of the weight, float32."""
    weight, (width, columns) = inputs.weight, inputs.weight.shape
    tiles, grad_weight = sums.norm_tiles + sums.bias_tiles, total
    is_rounded = rounds and total is not None and weight.dtype != torch.float32
    if is_rounded and total is not None:
        if not tiles:
            return total.to(weight.dtype), _vectors(inputs, sums, rounds)
        grad_weight = new(inputs, width, columns, dtype=weight.dtype)
    out = _vectors(inputs, sums, rounds)
    if tiles:
        beside = inputs.x  # for what the kernel does not read
        weight_programs = whole(weight.numel(), ROUNDED_NUMBERS) if is_rounded else 0
        project_parameters_kernel[(weight_programs + tiles,)](
            beside if total is None else total, beside if grad_weight is None else grad_weight,
            parts, out, columns, width, sums.numbers, sums.slabs, weight_programs, sums.norm_tiles,
            Rounding(is_rounded, sums.has_norm, sums.has_bias), ROUNDED_NUMBERS, SLABS_AT_A_TIME,
            SUMS_TILE[1],
        )  # fmt: skip
    return grad_weight, out


def _vectors(inputs: ProjectionInputs, sums: Sums, rounds: bool) -> Vectors:
    """Memory for the gradients of the vectors; x, which kernels do not read, for missing ones."""

    def like(vector: Tensor | None, size: int) -> Tensor:
        dtype = torch.float32 if vector is None or not rounds else vector.dtype
        return new(inputs, size, dtype=dtype)

    columns, norm_weight = inputs.x.shape[1], inputs.x
    norm_bias = bias = inputs.x
    if sums.has_norm:
        norm_weight, norm_bias = like(inputs.norm_weight, columns), like(inputs.norm_bias, columns)
    if sums.has_bias:
        bias = like(inputs.bias, inputs.weight.shape[0])
    return Vectors(norm_weight, norm_bias, bias)
