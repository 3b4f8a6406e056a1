"""Gradients of the statistics of the similarity matrix: the launches, chunk by chunk of G."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.calls import as_inputs
from mmcore.backends.triton.gradient import store_gradient_kernel
from mmcore.backends.triton.gradient_terms import side_terms, target_gradients, unit_of
from mmcore.backends.triton.kept_rows import as_rows
from mmcore.backends.triton.launch import chunk_rows, within_memory
from mmcore.backends.triton.matrix import Matrix, Plan, sides
from mmcore.backends.triton.products import add_product, product


class Gradient(NamedTuple):
    """G as the kernel finds it, over the unit of the upstream gradients."""

    matrix: Matrix
    plan: Plan
    row_terms: Tensor
    col_terms: Tensor
    at_target: Tensor | None
    is_half: bool  # whether G + Gᵀ is meant, and half of it computed
    kept: Tensor  # rows of E
    factor: Tensor  # what products with G are multiplied by: scale and unit, 0-D float32


class Needs(NamedTuple):
    """Which of the results are wanted."""

    of_x: bool
    of_y: bool
    of_scale: bool
    sums: bool


def softmax_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, row_lse, col_lse, kept = arguments[:17]
    *upstream, wanted = arguments[17:]
    matrix = Matrix.of(*described)
    if not matrix.has_columns:
        col_lse = row_lse.new_full((matrix.shape[1],), -torch.inf)
        upstream[1] = upstream[3] = torch.zeros_like(col_lse)
    unit = unit_of(matrix, *upstream)
    gradient = _gradient(matrix, (row_lse, col_lse), unit, upstream, kept, wanted)
    is_own_transpose = matrix.y is None
    needs = Needs(
        wanted[0], (wanted[1] or (is_own_transpose and wanted[0])) and not gradient.is_half,
        wanted[2], any(wanted[3:]),
    )  # fmt: skip
    columns, block = matrix.shape[1], matrix.tile("gradient").BM
    itemsize = matrix.product_dtype.itemsize
    found = within_memory(
        partial(_products_with, gradient, needs),
        chunk_rows(matrix.x, columns, itemsize, block, kept.nbytes), block,
    )  # fmt: skip
    of_scale, row_sums, col_sums = (part.mul_(unit) for part in found.sums())
    values = (*found.products(), of_scale, row_sums.sum(), row_sums, col_sums)
    return as_inputs(values, described[:6], wanted)


def _gradient(
    matrix: Matrix, lse: tuple[Tensor, Tensor], unit: Tensor, upstream: list[Tensor], kept: Tensor,
    wanted: list[bool],
) -> Gradient:  # fmt: skip
    upstream = [part / unit for part in upstream]
    row_grad, col_grad, row_pos_grad, col_pos_grad = upstream
    plan, of_rows, of_columns, is_shared = sides(matrix)
    # Sums of G by rows and by columns cannot be told from those of G + Gᵀ.
    is_half = matrix.is_half_enough and not any(wanted[3:])
    # The mirrored row j receives the biases of columns, at i.
    lent = of_columns if is_half else of_rows
    row_terms = col_terms = side_terms(
        plan, matrix.own_bias(True), lse[0], row_grad, row_pos_grad, lent, of_columns, is_shared
    )
    if not is_half:
        col_terms = side_terms(
            plan, matrix.own_bias(False), lse[1], col_grad, col_pos_grad, of_columns, of_rows,
            is_shared,
        )  # fmt: skip
    at_target = None
    if matrix.target is not None:
        at_target = target_gradients(matrix, *lse, *upstream)
    rows_of_e = as_rows(kept, matrix.shape[1])
    factor = (matrix.scale.double() * unit).float()
    return Gradient(matrix, plan, row_terms, col_terms, at_target, is_half, rows_of_e, factor)


def _products_with(gradient: Gradient, needs: Needs, size: int) -> GradientTotals:
    """Products and sums of G, chunks of at most `size` rows at a time."""
    matrix = gradient.matrix
    (rows, columns), dtype = matrix.shape, matrix.product_dtype
    totals = GradientTotals(gradient, needs)
    chunk = torch.empty((size, columns), dtype=dtype, device=matrix.x.device)
    held = min(rows, len(gradient.kept))
    for start, stop, is_kept in ((0, held, True), (held, rows, False)):
        for first in range(start, stop, size):
            g = chunk[: min(size, stop - first)]
            parts = totals.parts(g)
            _store_gradient(gradient, needs, g, first, parts, is_kept)
            totals.add(first, g, parts, is_kept)
    return totals


def _store_gradient(
    gradient: Gradient, needs: Needs, g: Tensor, first: int, parts: list[Tensor], is_kept: bool
) -> None:
    """G of the rows from `first` on, with its partial sums."""
    matrix, tile = gradient.matrix, gradient.matrix.tile("gradient")
    (rows, columns), ids, is_half = matrix.shape, matrix.ids(), gradient.is_half
    own_bias = matrix.col_bias if is_half else matrix.row_bias
    at_target = gradient.row_terms if gradient.at_target is None else gradient.at_target
    kept = matrix.kept(gradient.kept if is_kept else gradient.kept[:0], tile)
    programs = triton.cdiv(len(g), tile.BM) * triton.cdiv(columns, tile.BN)
    for is_exact in (False, True):
        store_gradient_kernel[(programs,)](
            *matrix.features(tile), gradient.plan.numbers, gradient.row_terms, gradient.col_terms,
            ids[0], at_target, *ids[1:], kept, g, *parts, first, len(g), rows, columns,
            matrix.x.stride(0), matrix.keys.stride(0), g.stride(0), gradient.kept.shape[1],
            DENOMINATOR=matrix.denominator, HAS_ROW_BIAS=own_bias is not None,
            HAS_COL_BIAS=matrix.col_bias is not None,
            HAS_COLUMNS=matrix.has_columns or is_half, IS_SYMMETRIC=is_half, HAS_KEPT=is_kept,
            IS_PRECISE=matrix.product_dtype == torch.float32, IS_EXACT=is_exact,
            NEEDS_SUMS=needs.sums, **matrix.settings(tile),
        )  # fmt: skip


class GradientTotals:
    """What the chunks of G add up to: the products that are needed, and sums, float64."""

    def __init__(self, gradient: Gradient, needs: Needs) -> None:
        matrix, dtype = gradient.matrix, gradient.matrix.product_dtype
        x, y = matrix.x, matrix.keys
        self.gradient, self.needs = gradient, needs
        self.left, self.right = x.to(dtype), y.to(dtype)
        # A chunk's rows of G·y are whole and can be rounded, unless Gᵀ·x is added to them.
        self.is_both = matrix.y is None and needs.of_y
        of_rows = torch.float32 if self.is_both else x.dtype
        self.of_x = x.new_empty(x.shape, dtype=of_rows) if needs.of_x else None
        self.of_y = y.new_zeros(y.shape, dtype=torch.float32) if needs.of_y else None
        self.of_scale = x.new_zeros((), dtype=torch.float64)
        self.row_sums, self.col_sums = (
            x.new_zeros(size, dtype=torch.float64) for size in matrix.shape
        )

    def parts(self, g: Tensor) -> list[Tensor]:
        """Memory for the partial sums of a chunk: of the scale, of rows, of columns."""
        (count, columns), tile = g.shape, self.gradient.matrix.tile("gradient")
        blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
        shapes = [(blocks * tiles,), (tiles, count), (blocks, columns)]
        kept = shapes if self.needs.sums else [shapes[0], (0,), (0,)]
        return [self.of_scale.new_zeros(shape) for shape in kept]

    def add(self, first: int, g: Tensor, parts: list[Tensor], is_kept: bool) -> None:
        """One chunk, from row `first` on."""
        rows = slice(first, first + len(g))
        self._add_rows(rows, g, is_kept)
        if self.needs.of_scale and not is_kept:
            self.of_scale += parts[0].sum() * (0.5 if self.gradient.is_half else 1.0)
        if self.of_y is not None:
            add_product(self.of_y, g.T, self.left[rows])
        if self.needs.sums:
            self.row_sums[rows].copy_(parts[1].sum(0))
            self.col_sums += parts[2].sum(0)

    def _add_rows(self, rows: slice, g: Tensor, is_kept: bool) -> None:
        # Where E was kept no product is known that the scale's gradient could be summed from.
        sums_by_product = is_kept and self.needs.of_scale
        if not (self.needs.of_x or sums_by_product):
            return
        of_rows = product(g, self.right)
        if sums_by_product:
            self.of_scale += (of_rows * self.left[rows]).sum(1, dtype=torch.float64).sum()
        if self.of_x is not None:
            self.of_x[rows].copy_(of_rows.mul_(self.gradient.factor))

    def products(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y; where y is x that of both, and nothing."""
        of_y = None if self.of_y is None else self.of_y.mul_(self.gradient.factor)
        if not self.is_both or self.of_x is None or of_y is None:
            return self.of_x, of_y
        return self.of_x.add_(of_y), None

    def sums(self) -> tuple[Tensor, Tensor, Tensor]:
        """Σ G·⟨x, y⟩, and the sums of G by rows and by columns."""
        return self.of_scale, self.row_sums, self.col_sums
