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

from mmcore.backends import implementation, selected
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.backends.reference.gram import GramInputs, GramSums, GramWanted
from mmcore.ops.autograd import differentiable
from mmcore.ops.define import define
from mmcore.ops.family import Family
from mmcore.ops.flops import Product, no_flops


def fake(inputs: GramInputs) -> GramSums:
    x, dtype = inputs.x, arithmetic_dtype(inputs.x.dtype)
    width = x.shape[1]
    other = width if inputs.y is None else inputs.y.shape[1]
    shapes = ((width, width), (width, other), (other, other), (3, width))
    dtypes = (dtype, dtype, dtype, torch.float64)
    return GramSums(
        *(
            x.new_empty(shape if is_wanted else 0, dtype=of)
            for shape, of, is_wanted in zip(shapes, dtypes, inputs.parts, strict=True)
        )
    )


def products(inputs: GramInputs, wanted: GramWanted) -> list[Product]:
    """Each Gram matrix that is wanted; diagonals are no products."""
    (rows, width), y = inputs.x.shape, wanted.x if inputs.y is None else wanted.y
    other = width if inputs.y is None else inputs.y.shape[1]
    found = (
        Product(rows * width * width, wanted.x, wanted.x),
        Product(rows * width * other, wanted.x, y),
        Product(rows * other * other, y, y),
    )
    return [product for product, is_wanted in zip(found, inputs.parts, strict=False) if is_wanted]


family = Family(
    "gram", inputs=GramInputs, results=GramSums, upstream=GramSums, wanted=GramWanted, fake=fake,
    reads=lambda inputs: (), products=products,
)  # fmt: skip


def run_mean(backend: str, x: Tensor) -> Tensor:
    mean: Tensor = implementation(backend, "gram").column_mean(x)
    return mean


def fake_mean(x: Tensor, backend: str) -> Tensor:
    return x.new_empty(x.shape[1], dtype=torch.float64)


def save_no_mean(ctx: Any, inputs: tuple[Tensor, str], output: Tensor) -> None:
    """The means are constants."""
    ctx.mark_non_differentiable(output)


define(
    "column_mean", "(Tensor x, str backend) -> Tensor", fake=fake_mean, run=run_mean,
    flops=no_flops,
)  # fmt: skip

_column_mean = differentiable(
    torch.ops.mmcore.column_mean.default, save=save_no_mean, backward=lambda *_: (None, None)
)


def column_mean(x: Tensor, *, backend: str | None) -> Tensor:
    """(D,) float64, without a gradient."""
    found: Tensor = _column_mean(x.detach(), selected(backend))
    return found


def call(
    *, x: Tensor, y: Tensor | None, means: tuple[Tensor | None, Tensor | None],
    parts: Sequence[bool], backend: str | None,
) -> GramSums:  # fmt: skip
    """The sums, differentiable; of sides less their means."""
    requested = selected(backend)
    x_mean, y_mean = means
    inputs = GramInputs(x=x, y=y, x_mean=x_mean, y_mean=y_mean, parts=list(parts))
    return family(inputs, backend=requested)
