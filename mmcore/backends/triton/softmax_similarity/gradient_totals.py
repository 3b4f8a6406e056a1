"""What chunks of G of softmax_similarity add up to: the gradients of x, y, scale and biases."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.triton.launch import row_tile, whole
from mmcore.backends.triton.products import add_product, product, scale_rows
from mmcore.backends.triton.softmax_similarity.gain import Given
from mmcore.backends.triton.softmax_similarity.gradient import BiasSums, ScaleParts
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix
from mmcore.backends.triton.softmax_similarity.product_sums import sum_with_rows_kernel
from mmcore.backends.triton.tuned_tiles import ProductTile


class Gradient(NamedTuple):
    """G as the kernels form it, times its gain (gain.py); all on the device."""

    matrix: SimilarityMatrix
    dtypes: tuple[torch.dtype, torch.dtype]  # of x and y as they came
    numbers: Tensor  # shared_shift.py
    terms: Tensor  # terms_memory.py
    terms_count: int  # numbers of a row
    given: Given
    kept: Tensor  # rows of E
    is_loss: bool  # whether it is that of a mean loss
    is_hopper: bool  # whether hopper/ forms what is not kept
    tile: ProductTile  # of what hopper/ leaves, or of everything
    kept_tile: ProductTile  # where E was kept

    @property
    def needs_factor(self) -> bool:
        """Whether products with G are yet to be multiplied by unit·scale."""
        return self.matrix.recipe.dtype == torch.float16

    @property
    def factor(self) -> Tensor:
        """unit·scale, 0-D float64."""
        return self.given.wide[1]

    @property
    def is_half(self) -> bool:
        """Whether the kernels store G + Gᵀ, and compute half of it."""
        return self.matrix.recipe.sides.IS_SYMMETRIC

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
    """The products of G that are needed, and its sums for the biases, float64."""

    def __init__(self, gradient: Gradient, needs: Needs, is_one_chunk: bool) -> None:
        inputs, (x_dtype, y_dtype) = gradient.matrix.inputs, gradient.dtypes
        x, y = inputs.x, inputs.keys
        self.gradient, self.needs, self.is_one_chunk = gradient, needs, is_one_chunk
        # A chunk's rows of G·y are whole and can be rounded, unless Gᵀ·x is added to them.
        self.is_both = inputs.y is None and needs.y
        keeps_float32 = self.is_both or not needs.rounds
        self.x_dtype, self.y_dtype = (
            torch.float32 if keeps_float32 else dtype for dtype in (x_dtype, y_dtype)
        )
        self.grad_x = self.grad_y = None
        if needs.x and not (is_one_chunk and self._is_product(gradient.kept.shape[0] > 0)):
            self.grad_x = torch.empty(x.shape, dtype=self.x_dtype, device=x.device)
        if needs.y and not is_one_chunk:
            self.grad_y = torch.empty(y.shape, dtype=torch.float32, device=y.device)
        self.row_sums: list[Tensor] = []
        self.col_sums: list[Tensor] = []

    def _is_product(self, is_kept: bool) -> bool:
        """Whether rows of the gradient of x are G·y, with nothing left to do.

        Where E was kept, the kernel of G has no products to sum the scale's gradient from.
        """
        return not self.gradient.needs_factor and not (self.needs.scale and is_kept)

    def new_sums(self, g: Tensor, is_kept: bool) -> BiasSums:
        """Memory for the sums of a chunk for the biases."""
        if not self.needs.sums:
            return BiasSums(g, g)  # dummy pointers
        (count, columns), tile = g.shape, self.gradient.tile_of(is_kept)
        shapes = (whole(columns, tile.BN), count), (whole(count, tile.BM), columns)
        # No program writes half of a symmetric matrix.
        new = g.new_zeros if self.gradient.is_half else g.new_empty
        return BiasSums(*(new(shape, dtype=torch.float64) for shape in shapes))

    def add(
        self, first: int, g: Tensor, sums: BiasSums, of_scale: ScaleParts, is_kept: bool,
        is_last: bool,
    ) -> None:  # fmt: skip
        """Adds one chunk, from row `first` on."""
        rows = slice(first, first + g.shape[0])
        self._add_rows(rows, g, of_scale, is_kept, is_last)
        if self.needs.y:
            self._add_columns(g.T, self._among(self.gradient.matrix.inputs.x, rows), first == 0)
        if self.needs.sums:
            self.row_sums.append(sums.row.sum(0))
            self.col_sums.append(sums.col.sum(0))

    def _among(self, vectors: Tensor, rows: slice) -> Tensor:
        """Those of a chunk."""
        return vectors if self.is_one_chunk else vectors[rows]

    def _add_rows(
        self, rows: slice, g: Tensor, of_scale: ScaleParts, is_kept: bool, is_last: bool
    ) -> None:
        sums_by_product = self.needs.scale and is_kept
        if not (self.needs.x or sums_by_product):
            return
        y = self.gradient.matrix.inputs.keys
        if self._is_product(is_kept):
            found = product(g, y, self.x_dtype)
            if self.grad_x is None:
                self.grad_x = found
            else:
                self.grad_x[rows] = found
            return
        found, out = product(g, y), None if self.grad_x is None else self._among(self.grad_x, rows)
        if sums_by_product:
            self._sum_with_rows(found, rows, out, of_scale, is_last)
        elif out is not None:
            scale_rows(found, self.gradient.factor, out)

    def _sum_with_rows(
        self, found: Tensor, rows: slice, out: Tensor | None, of_scale: ScaleParts, is_last: bool
    ) -> None:
        x, tile = self._among(self.gradient.matrix.inputs.x, rows), row_tile(found.shape[1])
        target = found if out is None else out
        sum_with_rows_kernel[(whole(found.shape[0], tile.ROWS),)](
            found, x, self.gradient.given, target, of_scale, self.gradient.terms, *found.shape,
            self.gradient.matrix.size.rows, found.stride(0), x.stride(0), target.stride(0),
            STORES=out is not None, IS_LAST=is_last, IS_LOSS=self.gradient.is_loss,
            ROWS=tile.ROWS, COLUMNS=tile.COLUMNS,
        )  # fmt: skip

    def _add_columns(self, g: Tensor, x: Tensor, begins: bool) -> None:
        if self.grad_y is not None:
            add_product(self.grad_y, g, x, begins=begins)
        elif self.gradient.needs_factor:
            self.grad_y = product(g, x)
        else:
            self.grad_y = product(g, x, self.y_dtype)

    def products(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y; where y is x that of both, and None."""
        grad_y = self.grad_y
        if grad_y is not None and self.gradient.needs_factor:
            is_wide = grad_y.dtype == self.y_dtype
            out = grad_y if is_wide else torch.empty_like(grad_y, dtype=self.y_dtype)
            grad_y = scale_rows(grad_y, self.gradient.factor, out)
        if not self.is_both or self.grad_x is None or grad_y is None:
            return self.grad_x, grad_y
        return self.grad_x.add_(grad_y), None

    def sums(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of the biases of rows and of columns."""
        if not self.needs.sums:
            return None, None
        unit = self.gradient.given.wide[0]
        row_sums = torch.cat(self.row_sums) * unit
        col_sums = torch.stack(self.col_sums).sum(0) * unit
        if self.gradient.matrix.inputs.y is None:
            row_sums = row_sums + col_sums
        return row_sums, col_sums
