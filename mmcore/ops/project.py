"""Projection head: optional input norm, linear map, optional L2 normalisation of the output.

    x̂ = norm(x)      z = x̂ · weightᵀ + bias      output = z / max(‖z‖, eps)

x: (N, K); weight: (D, K); bias: (D,); norm_weight, norm_bias: (K,); output: (N, D) in x's dtype.
`norm` is "none", "layer" or "rms". Beside the output the op returns what its backward needs, each
(N,), or empty where it does not apply: the rows' mean and inverse_std = 1/√(variance + norm_eps),
and inverse_norm = 1 / max(‖z‖, eps). With `precision` "medium" a backend may round the operands of
the products to bfloat16, with "high" split each in two (precision.py); the reference does not.
`wanted` says which gradients are computed; the
others come back empty. Without `rounds` the gradients of the parameters stay float32 sums; a row of
the gradient of x is no sum over rows, and a backend may round it all the same.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends import selected
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.backends.reference.project import (
    Projected,
    ProjectionUpstream,
    ProjectionWanted,
)
from mmcore.backends.reference.project import ProjectionInputs as ProjectionInputs
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import autocast_dtype, precision_of


def fake(inputs: ProjectionInputs) -> Projected:
    x, dtype = inputs.x, arithmetic_dtype(inputs.x.dtype)
    rows = x.shape[0]
    return Projected(
        x.new_empty(rows, inputs.weight.shape[0]),
        x.new_empty(rows if inputs.norm == "layer" else 0, dtype=dtype),
        x.new_empty(rows if inputs.norm != "none" else 0, dtype=dtype),
        x.new_empty(rows if inputs.normalize else 0, dtype=dtype),
    )


def reads(inputs: ProjectionInputs) -> tuple[str, ...]:
    """Rows of unit length have a gradient by themselves; others by what was multiplied."""
    statistics = ("mean", "inverse_std", "inverse_norm")
    return ("output", *statistics) if inputs.normalize else statistics


def products(inputs: ProjectionInputs, wanted: ProjectionWanted) -> list[Product]:
    """Rows by the weight; the norm's parameters have their gradients through the rows."""
    needs_rows = wanted.x or wanted.norm_weight or wanted.norm_bias
    return [Product(inputs.x.numel() * inputs.weight.shape[0], needs_rows, wanted.weight)]


family = Family(
    "project", inputs=ProjectionInputs, results=Projected, upstream=ProjectionUpstream,
    wanted=ProjectionWanted, fake=fake, reads=reads, products=products,
    decomposes=True,
)  # fmt: skip


def call(inputs: ProjectionInputs, *, backend: str | None) -> Tensor:
    """The output, differentiable; under autocast in its dtype. The inputs are checked."""
    dtype = autocast_dtype(inputs.x)
    precision = "medium" if dtype == torch.bfloat16 else precision_of(inputs.x)
    inputs = inputs._replace(precision=precision)
    output = family(inputs, backend=selected(backend)).output
    return output if dtype is None else output.to(dtype)
