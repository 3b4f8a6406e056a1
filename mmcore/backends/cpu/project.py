"""Launches the kernels of the projection; dtypes as in l2_normalize."""

from __future__ import annotations

import torch

from mmcore import _C
from mmcore.backends.cpu.arrays import (
    Array,
    new,
    rows,
    rows_or_none,
    threads,
    vector,
    vector_or_none,
    zeros,
)
from mmcore.backends.inputs import Gradients
from mmcore.backends.reference.project import (
    Projected,
    ProjectionInputs,
    ProjectionUpstream,
    ProjectionWanted,
)


def forward(inputs: ProjectionInputs) -> Projected:
    count = inputs.x.shape[0]
    found = Projected(
        output=new((count, inputs.weight.shape[0]), inputs.x.dtype),
        mean=new(count if inputs.norm == "layer" else 0),
        inverse_std=new(count if inputs.norm != "none" else 0),
        inverse_norm=new(count if inputs.normalize else 0),
    )
    output, mean, inverse_std, inverse_norm = as_views(found)
    _C.project_forward(as_arrays(inputs), output, mean, inverse_std, inverse_norm, threads())
    return found


def backward(
    inputs: ProjectionInputs, projected: Projected, upstream: ProjectionUpstream,
    wanted: ProjectionWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    # Rows of the gradient of x are finished one by one, in the dtype of x; the rest are sums.
    grad_x = new(inputs.x.shape, inputs.x.dtype) if wanted.x else None
    grad_weight, grad_bias, grad_norm_weight, grad_norm_bias = (
        zeros(like.shape) if like is not None and is_wanted else None
        for like, is_wanted in zip(inputs.tensors()[1:], wanted[1:], strict=True)
    )
    if not inputs.normalize:  # the kernel checks the shape of the output, and reads nothing of it
        projected = projected._replace(output=upstream.output)
    output, mean, inverse_std, inverse_norm = as_views(projected)
    _C.project_backward(
        as_arrays(inputs), output, mean, inverse_std, inverse_norm, rows(upstream.output),
        rows_or_none(grad_x), rows_or_none(grad_weight), vector_or_none(grad_bias),
        vector_or_none(grad_norm_weight), vector_or_none(grad_norm_bias), threads(),
    )  # fmt: skip
    return grad_x, grad_weight, grad_bias, grad_norm_weight, grad_norm_bias


def as_views(found: Projected) -> tuple[Array, Array, Array, Array]:
    """Its four fields."""
    output, mean, inverse_std, inverse_norm = found
    return rows(output), vector(mean), vector(inverse_std), vector(inverse_norm)


def as_arrays(inputs: ProjectionInputs) -> _C.ProjectionInputs:
    """What the compiled module takes."""
    return _C.ProjectionInputs(
        rows(inputs.x), rows(inputs.weight), vector_or_none(inputs.bias, torch.float32),
        inputs.norm, vector_or_none(inputs.norm_weight, torch.float32),
        vector_or_none(inputs.norm_bias, torch.float32), inputs.norm_eps, inputs.normalize,
        inputs.eps, inputs.precision,
    )  # fmt: skip
