"""Gram matrices on every device, by torch, whose dense products are hard to beat.

    xx = x̃ᵀ·x̃    xy = x̃ᵀ·ỹ    yy = ỹᵀ·ỹ    x̃ = x − x_mean    ỹ = y − y_mean

Never stored: anything with a row for each of x but the gradients. Loop order: one slab of rows at a
time, centred, multiplied, added. Precision: float32 products and sums (float64 for float64); the
diagonals are sums in float64; a slab of gradients is finished in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import Gradients, arithmetic_dtype

# Small beside the features of a large batch, and enough for a product to run at full speed. On a
# CPU what is made of a slab on its way stays in the caches; on a GPU launches cost more.
SLAB_BYTES = {"cpu": 2**20, "gpu": 8 * 2**20}


class GramInputs(NamedTuple):
    """Sums over rows of products of columns of one side or two, and which of them are wanted."""

    x: Tensor  # (N, D)
    y: Tensor | None  # (N, E)
    x_mean: Tensor | None  # (D,) float64
    y_mean: Tensor | None  # (E,) float64
    parts: Sequence[bool]


class GramSums(NamedTuple):
    """What gram finds; empty where it is not among the parts."""

    xx: Tensor  # (D, D)
    xy: Tensor  # (D, E)
    yy: Tensor  # (E, E)
    diagonals: Tensor  # (3, D) float64


class GramWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool


def column_mean(x: Tensor) -> Tensor:
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for rows in _slabs(x, x.shape[1]):
        total += x[rows].sum(0, dtype=torch.float64)
    return total / len(x)


def forward(inputs: GramInputs) -> GramSums:
    has_xx, has_xy, has_yy, has_diagonals = inputs.parts
    x_width = inputs.x.shape[1]
    y_width = x_width if inputs.y is None else inputs.y.shape[1]
    xx = _zeros(inputs.x, (x_width, x_width), has_xx)
    xy = _zeros(inputs.x, (x_width, y_width), has_xy)
    yy = _zeros(inputs.x, (y_width, y_width), has_yy)
    diagonals = inputs.x.new_zeros((3, x_width) if has_diagonals else 0, dtype=torch.float64)
    # torch has float32 sums of 16-bit products on a GPU alone.
    keeps_16_bits = inputs.x.is_cuda and inputs.x_mean is None and inputs.y_mean is None
    for rows in _slabs(inputs.x, max(x_width, y_width)):
        left, right = _sides(inputs, rows, keeps_16_bits)
        if has_xx:
            _add_product(xx, left, left)
        if has_xy:
            _add_product(xy, left, right)
        if has_yy:
            _add_product(yy, right, right)
        if has_diagonals:
            _add_diagonals(diagonals, left.double(), right.double())
    return GramSums(xx, xy, yy, diagonals)


def backward(
    inputs: GramInputs, sums: GramSums, upstream: GramSums, wanted: GramWanted, rounds: bool
) -> Gradients:
    x, y = inputs.x, inputs.x if inputs.y is None else inputs.y
    has_xx, has_xy, has_yy, has_diagonals = inputs.parts
    by_xx = upstream.xx + upstream.xx.T if has_xx else None
    by_yy = upstream.yy + upstream.yy.T if has_yy else None
    by_xy, by_yx = (upstream.xy, upstream.xy.T) if has_xy else (None, None)
    grad_xx = grad_xy = grad_yy = None
    if has_diagonals:
        grad_xx, grad_xy, grad_yy = upstream.diagonals.to(arithmetic_dtype(x.dtype)).unbind()
    grad_x = _empty(x, rounds) if wanted.x else None
    grad_y = _empty(y, rounds) if wanted.y else None
    for rows in _slabs(x, max(x.shape[1], y.shape[1])):
        left, right = _sides(inputs, rows, keeps_16_bits=False)
        if grad_x is not None:
            grad_x[rows] = _gradient(left, right, by_xx, by_yx, grad_xx, grad_xy)
        if grad_y is not None:
            grad_y[rows] = _gradient(right, left, by_yy, by_xy, grad_yy, grad_xy)
    return grad_x, grad_y


def _empty(like: Tensor, rounds: bool) -> Tensor:
    """Memory for a gradient, each slab of which is rounded as it is finished."""
    return like.new_empty(like.shape, dtype=like.dtype if rounds else arithmetic_dtype(like.dtype))


def _gradient(
    own: Tensor, other: Tensor, by_own: Tensor | None, by_other: Tensor | None,
    grad_squares: Tensor | None, grad_products: Tensor | None,
) -> Tensor:  # fmt: skip
    total = torch.zeros_like(own)
    if by_own is not None:
        total.addmm_(own, by_own)
    if by_other is not None:
        total.addmm_(other, by_other)
    if grad_squares is not None:
        total.addcmul_(own, grad_squares, value=2)
    if grad_products is not None:
        total.addcmul_(other, grad_products)
    return total


def _slabs(x: Tensor, width: int) -> Iterator[slice]:
    """A slab is SLAB_BYTES of float32, or as large as the matrix that it is added to."""
    most = SLAB_BYTES["cpu" if x.is_cpu else "gpu"]
    size = max(most // (width * torch.float32.itemsize), width)
    for first in range(0, len(x), size):
        yield slice(first, first + size)


def _sides(inputs: GramInputs, rows: slice, keeps_16_bits: bool) -> tuple[Tensor, Tensor]:
    left = _centred(inputs.x[rows], inputs.x_mean, keeps_16_bits)
    if inputs.y is None:
        return left, left
    return left, _centred(inputs.y[rows], inputs.y_mean, keeps_16_bits)


def _centred(rows: Tensor, mean: Tensor | None, keeps_16_bits: bool) -> Tensor:
    wide = arithmetic_dtype(rows.dtype)
    if mean is None:
        return rows if keeps_16_bits else rows.to(wide)
    # In two parts: rounding in the mean would shift all rows, and all gradients alike.
    rounded = mean.to(wide)
    return rows.to(wide).sub(rounded).sub_((mean - rounded).to(wide))


def _zeros(x: Tensor, shape: tuple[int, int], is_wanted: bool) -> Tensor:
    return x.new_zeros(shape if is_wanted else 0, dtype=arithmetic_dtype(x.dtype))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ·right"""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += torch.mm(left.T, right, out_dtype=total.dtype)


def _add_diagonals(diagonals: Tensor, left: Tensor, right: Tensor) -> None:
    for total, pair in zip(diagonals, ((left, left), (left, right), (right, right)), strict=True):
        total += (pair[0] * pair[1]).sum(0)
