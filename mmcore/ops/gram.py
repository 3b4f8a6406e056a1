"""Sums over rows of products of columns: Gram matrices of centred features, and their diagonals.

    x̃ = x − x_mean    ỹ = y − y_mean
    xx = x̃ᵀ·x̃    xy = x̃ᵀ·ỹ    yy = ỹᵀ·ỹ    diagonals = Σ_n (x̃², x̃·ỹ, ỹ²)
    grad_x = x̃·(grad_xx + grad_xxᵀ) + ỹ·grad_xyᵀ + 2·x̃·grad_diagonals[0] + ỹ·grad_diagonals[1]
    grad_y = ỹ·(grad_yy + grad_yyᵀ) + x̃·grad_xy + 2·ỹ·grad_diagonals[2] + x̃·grad_diagonals[1]

x: (N, D); y: (N, E), or None where it is x; x_mean, y_mean: (D,) and (E,) float64, or None for 0.
`parts` says which of the four are computed; the others come back empty. xx, xy and yy are (D, D),
(D, E) and (E, E), float32 for inputs of 16 and 32 bits, float64 for float64. diagonals, (3, D) for
D = E, is float64, because objectives are small differences of these sums.

The means are constants. Of the means of these very rows that is the whole gradient: a change of
x_mean changes xy by −Σ_n ỹ_n, which is 0. One op has all sums of two sides, so that the gradient of
a side is added up before it is rounded to that side's dtype.

column_mean is (D,) float64, without a gradient.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import selected

# One implementation, of torch's products, is the reference and serves every device.
from mmcore.backends.gram import column_mean, gram, gram_backward
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.precision import arithmetic_dtype

# Contract

_INPUTS = "Tensor x, Tensor? y, Tensor? x_mean, Tensor? y_mean, bool[] parts"
SCHEMA = f"({_INPUTS}, str backend) -> (Tensor xx, Tensor xy, Tensor yy, Tensor diagonals)"
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor grad_xx, Tensor grad_xy, Tensor grad_yy, Tensor grad_diagonals, "
    "bool[] wanted, str backend) -> (Tensor grad_x, Tensor grad_y)"
)
MEAN_SCHEMA = "(Tensor x, str backend) -> Tensor"


def fake_forward(x: Tensor, y: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    parts: Sequence[bool] = arguments[2]
    dtype, width = arithmetic_dtype(x.dtype), x.shape[1]
    other = width if y is None else y.shape[1]
    shapes = ((width, width), (width, other), (other, other), (3, width))
    dtypes = (dtype, dtype, dtype, torch.float64)
    return tuple(
        x.new_empty(shape if is_wanted else 0, dtype=of)
        for shape, of, is_wanted in zip(shapes, dtypes, parts, strict=True)
    )


def fake_backward(x: Tensor, y: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    wanted: Sequence[bool] = arguments[-2]
    other = x if y is None else y
    return (
        x.new_empty(x.shape if wanted[0] else 0),
        other.new_empty(other.shape if wanted[1] else 0),
    )


def fake_mean(x: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float64)


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.parts, ctx.backend = inputs
    ctx.save_for_backward(*tensors)


def save_no_mean(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    """The means are constants."""
    ctx.mark_non_differentiable(output)


def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    grad_x, grad_y = _backward_op(*ctx.saved_tensors, ctx.parts, *gradients, wanted, ctx.backend)
    of_sides = (grad_x if wanted[0] else None, grad_y if wanted[1] else None)
    return *of_sides, None, None, None, None


# Backends

define(
    "gram",
    SCHEMA,
    fake=fake_forward,
    implementations={"reference": gram, "cpu": gram, "triton": gram},
)
define(
    "gram_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={"reference": gram_backward, "cpu": gram_backward, "triton": gram_backward},
)
define(
    "column_mean",
    MEAN_SCHEMA,
    fake=fake_mean,
    implementations={"reference": column_mean, "cpu": column_mean, "triton": column_mean},
)

_backward_op = once_differentiable(torch.ops.mmcore.gram_backward.default)
_call = differentiable(torch.ops.mmcore.gram.default, save=save, backward=backward)
_mean = differentiable(
    torch.ops.mmcore.column_mean.default, save=save_no_mean, backward=lambda *_: (None, None)
)


def call(
    x: Tensor, y: Tensor | None, *, centred: bool, parts: Sequence[bool], backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """xx, xy, yy and diagonals, differentiable; of sides less their means where `centred`."""
    requested = selected(backend)
    means = (
        _mean(side.detach(), requested) if centred and side is not None else None for side in (x, y)
    )
    xx, xy, yy, diagonals = _call(x, y, *means, list(parts), requested)
    return xx, xy, yy, diagonals
