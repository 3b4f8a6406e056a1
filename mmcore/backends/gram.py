"""Gram matrices on every device, by torch, whose dense products are hard to beat.

    xx = x̃ᵀ·x̃    xy = x̃ᵀ·ỹ    yy = ỹᵀ·ỹ    x̃ = x − x_mean    ỹ = y − y_mean

Never stored: anything with a row for each of x but the gradients. Loop order: one slab of rows at a
time, centred, multiplied, added. Precision: float32 products and sums (float64 for float64); the
diagonals are sums in float64; a slab of gradients is finished in float32 and rounded once.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmcore.backends.inputs import GramInputs

# Small beside the features of a large batch, and enough for a product to run at full speed. On a
# CPU what is made of a slab on its way stays in the caches; on a GPU launches cost more.
SLAB_BYTES = {"cpu": 2**20, "gpu": 8 * 2**20}


def column_mean(x: Tensor) -> Tensor:
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for rows in _slabs(x, x.shape[1]):
        total += x[rows].sum(0, dtype=torch.float64)
    return total / len(x)


def gram(*arguments: Any) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    call = GramInputs(*arguments)
    has_xx, has_xy, has_yy, has_diagonals = call.parts
    x_width = call.x.shape[1]
    y_width = x_width if call.y is None else call.y.shape[1]
    xx = _zeros(call.x, (x_width, x_width), has_xx)
    xy = _zeros(call.x, (x_width, y_width), has_xy)
    yy = _zeros(call.x, (y_width, y_width), has_yy)
    diagonals = call.x.new_zeros((3, x_width) if has_diagonals else 0, dtype=torch.float64)
    # torch has float32 sums of 16-bit products on a GPU alone.
    keeps_16_bits = call.x.is_cuda and call.x_mean is None and call.y_mean is None
    for rows in _slabs(call.x, max(x_width, y_width)):
        left, right = _sides(call, rows, keeps_16_bits)
        if has_xx:
            _add_product(xx, left, left)
        if has_xy:
            _add_product(xy, left, right)
        if has_yy:
            _add_product(yy, right, right)
        if has_diagonals:
            _add_diagonals(diagonals, left.double(), right.double())
    return xx, xy, yy, diagonals


def gram_backward(*arguments: Any) -> tuple[Tensor, Tensor]:
    *described, grad_xx, grad_xy, grad_yy, grad_diagonals, wanted = arguments
    call = GramInputs(*described)
    y = call.x if call.y is None else call.y
    has_xx, has_xy, has_yy, has_diagonals = call.parts
    by_xx = grad_xx + grad_xx.T if has_xx else None
    by_yy = grad_yy + grad_yy.T if has_yy else None
    by_xy, by_yx = (grad_xy, grad_xy.T) if has_xy else (None, None)
    of_x = of_xy = of_y = None
    if has_diagonals:
        of_x, of_xy, of_y = grad_diagonals.to(_wide(call.x)).unbind()
    grad_x = call.x.new_empty(call.x.shape if wanted[0] else 0)
    grad_y = y.new_empty(y.shape if wanted[1] else 0)
    for rows in _slabs(call.x, max(call.x.shape[1], y.shape[1])):
        left, right = _sides(call, rows, keeps_16_bits=False)
        if wanted[0]:
            grad_x[rows] = _gradient(left, right, by_xx, by_yx, of_x, of_xy)
        if wanted[1]:
            grad_y[rows] = _gradient(right, left, by_yy, by_xy, of_y, of_xy)
    return grad_x, grad_y


def _gradient(
    own: Tensor, other: Tensor, by_own: Tensor | None, by_other: Tensor | None,
    of_squares: Tensor | None, of_products: Tensor | None,
) -> Tensor:  # fmt: skip
    total = torch.zeros_like(own)
    if by_own is not None:
        total.addmm_(own, by_own)
    if by_other is not None:
        total.addmm_(other, by_other)
    if of_squares is not None:
        total.addcmul_(own, of_squares, value=2)
    if of_products is not None:
        total.addcmul_(other, of_products)
    return total


def _slabs(x: Tensor, width: int) -> Iterator[slice]:
    """A slab is SLAB_BYTES of float32, or as large as the matrix that it is added to."""
    most = SLAB_BYTES["cpu" if x.is_cpu else "gpu"]
    size = max(most // (width * torch.float32.itemsize), width)
    for first in range(0, len(x), size):
        yield slice(first, first + size)


def _sides(call: GramInputs, rows: slice, keeps_16_bits: bool) -> tuple[Tensor, Tensor]:
    left = _centred(call.x[rows], call.x_mean, keeps_16_bits)
    if call.y is None:
        return left, left
    return left, _centred(call.y[rows], call.y_mean, keeps_16_bits)


def _centred(rows: Tensor, mean: Tensor | None, keeps_16_bits: bool) -> Tensor:
    wide = _wide(rows)
    if mean is None:
        return rows if keeps_16_bits else rows.to(wide)
    # In two parts: rounding in the mean would shift all rows, and all gradients alike.
    rounded = mean.to(wide)
    return rows.to(wide).sub(rounded).sub_((mean - rounded).to(wide))


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _zeros(x: Tensor, shape: tuple[int, int], is_wanted: bool) -> Tensor:
    return x.new_zeros(shape if is_wanted else 0, dtype=_wide(x))


def _add_product(total: Tensor, left: Tensor, right: Tensor) -> None:
    """total += leftᵀ·right"""
    if left.dtype == total.dtype:
        total.addmm_(left.T, right)
    else:
        total += torch.mm(left.T, right, out_dtype=total.dtype)


def _add_diagonals(diagonals: Tensor, left: Tensor, right: Tensor) -> None:
    for total, pair in zip(diagonals, ((left, left), (left, right), (right, right)), strict=True):
        total += (pair[0] * pair[1]).sum(0)
