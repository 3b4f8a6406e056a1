"""What chunks of G of softmax_similarity add up to: the gradients of x, y, scale and biases."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton.products import add_product, product, scale_rows, sum_with_rows
from mmcore.backends.triton.softmax_similarity.gradient import GradientSums
from mmcore.backends.triton.softmax_similarity.gradient_terms import GradientTerms
from mmcore.backends.triton.tuned_tiles import ProductTile


class Gradient(NamedTuple):
    """G as the kernels form it, over the unit of the upstream gradients; all on the device."""

    inputs: SimilarityInputs  # with operands as they are multiplied
    dtypes: tuple[torch.dtype, torch.dtype]  # of x and y as they came
    numbers: Tensor  # shared_shift.py
    terms: GradientTerms
    kept: Tensor  # rows of E
    is_hopper: bool  # whether hopper/ forms what is not kept
    tile: ProductTile  # of what hopper/ leaves, or of everything
    kept_tile: ProductTile  # where E was kept

    @property
    def unit(self) -> Tensor:
        """0-D float64."""
        return self.terms.unit_and_factor[0]

    @property
    def factor(self) -> Tensor:
        """The unit times the scale, by which products with G are multiplied; 0-D float64."""
        return self.terms.unit_and_factor[1]

    @property
    def is_half(self) -> bool:
        """Whether the kernels store G + Gᵀ, and compute half of it."""
        return self.inputs.is_half_enough

    def tile_of(self, is_kept: bool) -> ProductTile:
        """The tile of rows whose E was kept, or of others."""
        return self.kept_tile if is_kept else self.tile


class Needs(NamedTuple):
    """Which of the results are wanted."""

    x: bool
    y: bool
    scale: bool
    sums: bool  # by rows and by columns, for the biases
    rounds: bool  # whether gradients of x and y are rounded to their dtypes


class GradientTotals:
    """The products of G that are needed, and its sums, float64."""

    def __init__(self, gradient: Gradient, needs: Needs) -> None:
        inputs, (x_dtype, _) = gradient.inputs, gradient.dtypes
        x, y = inputs.x, inputs.keys
        self.gradient, self.needs = gradient, needs
        # A chunk's rows of G·y are whole and can be rounded, unless Gᵀ·x is added to them.
        self.is_both = inputs.y is None and needs.y
        keeps_float32 = self.is_both or not needs.rounds
        dtype = torch.float32 if keeps_float32 else x_dtype
        self.grad_x = x.new_empty(x.shape, dtype=dtype) if needs.x else None
        self.grad_y = y.new_empty(y.shape, dtype=torch.float32) if needs.y else None
        self.grad_scale: list[Tensor] = []
        self.row_sums: list[Tensor] = []
        self.col_sums: list[Tensor] = []

    def new_parts(self, g: Tensor, is_kept: bool) -> GradientSums:
        """Memory for the partial sums of a chunk."""
        (count, columns), tile = g.shape, self.gradient.tile_of(is_kept)
        blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
        shapes = [(blocks * tiles,), (tiles, count), (blocks, columns)]
        needed = shapes if self.needs.sums else [shapes[0], (0,), (0,)]
        # No program writes half of a symmetric matrix, and few write tiles that Hopper's do.
        is_partial = self.gradient.is_half or self.gradient.is_hopper
        new = g.new_zeros if is_partial else g.new_empty
        return GradientSums(*(new(shape, dtype=torch.float64) for shape in needed))

    def add(
        self, first: int, g: Tensor, parts: GradientSums, scale_parts: list[Tensor], is_kept: bool
    ) -> None:
        """Adds one chunk, from row `first` on."""
        rows = slice(first, first + len(g))
        self._add_rows(rows, g, is_kept)
        if self.needs.scale and not is_kept:
            self.grad_scale += scale_parts
        if self.grad_y is not None:
            add_product(self.grad_y, g.T, self.gradient.inputs.x[rows], begins=first == 0)
        if self.needs.sums:
            self.row_sums.append(parts.row.sum(0))
            self.col_sums.append(parts.col.sum(0))

    def _add_rows(self, rows: slice, g: Tensor, is_kept: bool) -> None:
        # Where E was kept, the kernel of G has no products to sum the scale's gradient from.
        sums_by_product = is_kept and self.needs.scale
        if not (self.needs.x or sums_by_product):
            return
        inputs, factor = self.gradient.inputs, self.gradient.factor
        found = product(g, inputs.keys)
        grad_x = None if self.grad_x is None else self.grad_x[rows]
        if sums_by_product:
            self.grad_scale.append(sum_with_rows(found, inputs.x[rows], factor, grad_x))
        elif grad_x is not None:
            scale_rows(found, factor, grad_x)

    def products(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y; where y is x that of both, and None."""
        grad_y = self.grad_y
        if grad_y is not None:
            keeps_float32 = self.is_both or not self.needs.rounds
            dtype = torch.float32 if keeps_float32 else self.gradient.dtypes[1]
            out = grad_y if grad_y.dtype == dtype else torch.empty_like(grad_y, dtype=dtype)
            grad_y = scale_rows(grad_y, self.gradient.factor, out)
        if not self.is_both or self.grad_x is None or grad_y is None:
            return self.grad_x, grad_y
        return self.grad_x.add_(grad_y), None

    def sums(self) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of scale and of the biases of rows and of columns."""
        unit = self.gradient.unit
        grad_scale = row_sums = col_sums = None
        if self.grad_scale:
            grad_scale = torch.cat(self.grad_scale).sum() * unit
            grad_scale = grad_scale * 0.5 if self.gradient.is_half else grad_scale
        if self.needs.sums:
            row_sums = torch.cat(self.row_sums) * unit
            col_sums = torch.stack(self.col_sums).sum(0) * unit
            if self.gradient.inputs.y is None:
                row_sums = row_sums + col_sums
        return grad_scale, row_sums, col_sums
