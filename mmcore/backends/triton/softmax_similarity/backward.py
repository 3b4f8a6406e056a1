"""Gradients of the statistics of the similarity matrix: the launches, chunk by chunk of G.

Log-sum-exps of positives take a second pass, in which positives alone are counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs, as_inputs
from mmcore.backends.triton import hopper
from mmcore.backends.triton.inputs import Matrix
from mmcore.backends.triton.launch import chunk_of_gradient, chunk_rows, within_memory
from mmcore.backends.triton.products import add_product, product, scale_rows, sum_with_rows
from mmcore.backends.triton.softmax_similarity.gradient import store_gradient_kernel
from mmcore.backends.triton.softmax_similarity.gradient_terms import (
    BLOCK,
    LARGEST_BLOCK,
    LARGEST_PROGRAMS,
    TERMS,
    gradient_terms_kernel,
    largest_gradients_kernel,
)
from mmcore.backends.triton.softmax_similarity.kept_exponentials import as_rows
from mmcore.backends.triton.softmax_similarity.shared_shift import Plan
from mmcore.backends.triton.tuned_tiles import ProductTile

# Grid size of the exact launch, for tiles that the shared shift cannot serve: there seldom are any.
EXACT_PROGRAMS = 1024


class Gradient(NamedTuple):
    """G as the kernel finds it, over the unit of the upstream gradients; all on the device."""

    matrix: Matrix  # of the operands as they are multiplied
    dtypes: tuple[torch.dtype, torch.dtype]  # of x and y as they came
    plan: Plan
    row_terms: Tensor
    col_terms: Tensor
    at_target: Tensor
    unit: Tensor  # 0-D float64
    factor: Tensor  # what products with G are multiplied by: scale and unit, 0-D float64
    untrusted: Tensor  # (2, blocks) int32: of rows, of columns that take exponentials of their own
    any_untrusted: Tensor  # 0-D int32: whether there are any
    is_half: bool  # whether G + Gᵀ is meant, and half of it computed
    kept: Tensor  # rows of E
    is_hopper: bool  # whether hopper/ forms what is not kept
    tile: ProductTile  # of what it leaves, or of everything
    kept_tile: ProductTile  # where E was kept

    def tile_of(self, is_kept: bool) -> ProductTile:
        """The tile of rows whose E was kept, or of others."""
        return self.kept_tile if is_kept else self.tile


class Needs(NamedTuple):
    """Which of the results are wanted."""

    of_x: bool
    of_y: bool
    of_scale: bool
    sums: bool


def softmax_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, row_lse, col_lse, row_pos, col_pos, kept = arguments[:20]
    *upstream, wanted = arguments[20:]
    call = SimilarityInputs(*described)
    if call.positives == "sum":
        return _gradients(described, (row_lse, col_lse), kept, kept.nbytes, upstream, wanted)
    # The same rounded E in both, so that it cancels where the positives are nearly everything;
    # where they are not counted it is 0 for them.
    of_second = kept[:0] if call.denominator == "negatives" else kept
    nothing = [torch.zeros_like(part) for part in upstream[:2]]
    of_all, of_positives = ([*part, *nothing] for part in (upstream[:2], upstream[2:]))
    passes = (
        _gradients(described, (row_lse, col_lse), kept, kept.nbytes, of_all, wanted),
        _gradients(
            call.among_positives(), (row_pos, col_pos), of_second, kept.nbytes, of_positives, wanted
        ),
    )
    return tuple(one.add_(other) for one, other in zip(*passes, strict=True))


def _gradients(
    described: Sequence[Any],
    lse: tuple[Tensor, Tensor],
    kept: Tensor,
    held_bytes: int,
    upstream: list[Tensor],
    wanted: Sequence[bool],
) -> tuple[Tensor, ...]:
    """Where statistics of positives are sums; `held_bytes` of the workspace are taken."""
    matrix = Matrix.of(*described)
    is_half, is_own_transpose = matrix.is_half_enough, matrix.y is None
    needs = Needs(
        wanted[0], (wanted[1] or (is_own_transpose and wanted[0])) and not is_half,
        wanted[2], any(wanted[3:]),
    )  # fmt: skip
    gradient = _gradient(matrix, lse, upstream, kept, is_half, needs.sums)
    columns, block = matrix.shape[1], max(gradient.tile.BM, gradient.kept_tile.BM)
    itemsize = matrix.product_dtype.itemsize
    found = within_memory(
        partial(_products_with, gradient, needs),
        chunk_rows(matrix.x, columns, itemsize, block, held_bytes), block,
    )  # fmt: skip
    return as_inputs((*found.products(), *found.sums()), described[:6], wanted)


def _gradient(
    matrix: Matrix, lse: tuple[Tensor, Tensor], upstream: list[Tensor], kept: Tensor, is_half: bool,
    needs_sums: bool,
) -> Gradient:  # fmt: skip
    (rows, columns), x, plan = matrix.shape, matrix.x, Plan.of(matrix)
    strides = [part.stride(0) if part.numel() else 0 for part in upstream]
    programs = min(LARGEST_PROGRAMS, triton.cdiv(max(rows, columns), LARGEST_BLOCK))
    largest = x.new_empty(programs, dtype=torch.float64)
    any_untrusted = x.new_empty((), dtype=torch.int32)
    largest_gradients_kernel[(programs,)](
        *upstream, largest, any_untrusted, rows, columns, *strides,
        HAS_COLUMNS=matrix.has_columns, BLOCK=LARGEST_BLOCK,
    )  # fmt: skip
    row_terms = col_terms = x.new_empty((TERMS, rows), dtype=torch.float32)
    if not is_half:
        col_terms = x.new_empty((TERMS, columns), dtype=torch.float32)
    at_target = x.new_empty(rows if matrix.target is not None else 0, dtype=torch.float32)
    numbers, blocks = x.new_empty(2, dtype=torch.float64), triton.cdiv(max(rows, columns), BLOCK)
    untrusted = any_untrusted.new_empty(2, blocks)
    sides = (plan.rows, plan.columns)
    gradient_terms_kernel[(blocks,)](
        *lse, *upstream, matrix.ids()[0], plan.logits, matrix.scale, plan.shared, *matrix.biases(),
        *(x if side.largest is None else side.largest for side in sides),
        *(x if side.factor is None else side.factor for side in sides),
        largest, row_terms, col_terms, at_target, numbers, untrusted, any_untrusted, programs, rows,
        columns, *strides,
        DENOMINATOR=matrix.denominator, HAS_TARGET=matrix.target is not None,
        **matrix.which_biases(), HAS_COLUMNS=matrix.has_columns, IS_SYMMETRIC=is_half,
        IS_FLOAT16=matrix.product_dtype == torch.float16, BLOCK=BLOCK,
        LARGEST_PROGRAMS=LARGEST_PROGRAMS,
    )  # fmt: skip
    matrix, dtypes = matrix.rounded(), (x.dtype, matrix.keys.dtype)
    is_hopper = hopper.serves(matrix) and not needs_sums
    tile = hopper.EXACT_TILE if is_hopper else matrix.tile("gradient")
    return Gradient(
        matrix, dtypes, plan, row_terms, col_terms, at_target, numbers[0], numbers[1], untrusted,
        any_untrusted, is_half, as_rows(kept, columns), is_hopper, tile, matrix.tile("kept"),
    )  # fmt: skip


def _products_with(gradient: Gradient, needs: Needs, size: int) -> GradientTotals:
    """Products and sums of G, chunks of at most `size` rows at a time."""
    matrix = gradient.matrix
    (rows, columns), dtype = matrix.shape, matrix.product_dtype
    totals = GradientTotals(gradient, needs)
    chunk = chunk_of_gradient(matrix.x, size, columns, dtype)
    held = min(rows, len(gradient.kept))
    for start, stop, is_kept in ((0, held, True), (held, rows, False)):
        for first in range(start, stop, size):
            g = chunk[: min(size, stop - first)]
            parts = totals.parts(g, is_kept)
            _store_gradient(gradient, needs, g, first, parts, is_kept)
            totals.add(first, g, parts, is_kept)
    return totals


def _store_gradient(
    gradient: Gradient, needs: Needs, g: Tensor, first: int, parts: list[Tensor], is_kept: bool
) -> None:
    """G of the rows from `first` on, with its partial sums, to which Hopper's are added."""
    matrix, tile, is_half = gradient.matrix, gradient.tile_of(is_kept), gradient.is_half
    (rows, columns), ids = matrix.shape, matrix.ids()
    kept = matrix.kept(gradient.kept if is_kept else gradient.kept[:0], tile)
    tiles = triton.cdiv(len(g), tile.BM) * triton.cdiv(columns, tile.BN)
    if gradient.is_hopper and not is_kept:
        parts.append(hopper.store_gradient(
            matrix, gradient.plan.numbers, gradient.row_terms, gradient.col_terms,
            gradient.untrusted, gradient.at_target, first, g,
        ))  # fmt: skip
        launches = [(EXACT_PROGRAMS, True)]
    else:
        launches = [(tiles, False), (EXACT_PROGRAMS, True)]
    for programs, is_exact in launches:
        store_gradient_kernel[(min(programs, tiles),)](
            *matrix.features(tile), gradient.plan.numbers, gradient.row_terms, gradient.col_terms,
            gradient.any_untrusted, ids[0], gradient.at_target, *ids[1:], kept, g, *parts[:3],
            first, len(g), rows, columns, matrix.x.stride(0), matrix.keys.stride(0), g.stride(0),
            gradient.kept.shape[1],
            DENOMINATOR=matrix.denominator, HAS_ROW_BIAS=matrix.row_bias is not None,
            HAS_COL_BIAS=matrix.col_bias is not None,
            HAS_COLUMNS=matrix.has_columns or is_half, IS_SYMMETRIC=is_half, HAS_KEPT=is_kept,
            IS_PRECISE=matrix.product_dtype == torch.float32, IS_EXACT=is_exact,
            NEEDS_SUMS=needs.sums, **matrix.settings(tile),
        )  # fmt: skip


class GradientTotals:
    """What the chunks of G add up to: the products that are needed, and sums, float64."""

    def __init__(self, gradient: Gradient, needs: Needs) -> None:
        matrix, (x_dtype, _) = gradient.matrix, gradient.dtypes
        x, y = matrix.x, matrix.keys
        self.gradient, self.needs = gradient, needs
        # A chunk's rows of G·y are whole and can be rounded, unless Gᵀ·x is added to them.
        self.is_both = matrix.y is None and needs.of_y
        of_rows = torch.float32 if self.is_both else x_dtype
        self.of_x = x.new_empty(x.shape, dtype=of_rows) if needs.of_x else None
        self.of_y = y.new_empty(y.shape, dtype=torch.float32) if needs.of_y else None
        self.of_scale: list[Tensor] = []
        self.row_sums: list[Tensor] = []
        self.col_sums: list[Tensor] = []

    def parts(self, g: Tensor, is_kept: bool) -> list[Tensor]:
        """Memory for the partial sums of a chunk: of the scale, of rows, of columns."""
        (count, columns), tile = g.shape, self.gradient.tile_of(is_kept)
        blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
        shapes = [(blocks * tiles,), (tiles, count), (blocks, columns)]
        kept = shapes if self.needs.sums else [shapes[0], (0,), (0,)]
        # Half of a symmetric matrix no program writes, and of Hopper's tiles few.
        is_partial = self.gradient.is_half or self.gradient.is_hopper
        new = g.new_zeros if is_partial else g.new_empty
        return [new(shape, dtype=torch.float64) for shape in kept]

    def add(self, first: int, g: Tensor, parts: list[Tensor], is_kept: bool) -> None:
        """One chunk, from row `first` on."""
        rows = slice(first, first + len(g))
        self._add_rows(rows, g, is_kept)
        if self.needs.of_scale and not is_kept:
            self.of_scale += [parts[0], *parts[3:]]
        if self.of_y is not None:
            add_product(self.of_y, g.T, self.gradient.matrix.x[rows], begins=first == 0)
        if self.needs.sums:
            self.row_sums.append(parts[1].sum(0))
            self.col_sums.append(parts[2].sum(0))

    def _add_rows(self, rows: slice, g: Tensor, is_kept: bool) -> None:
        # Where E was kept no product is known that the scale's gradient could be summed from.
        sums_by_product = is_kept and self.needs.of_scale
        if not (self.needs.of_x or sums_by_product):
            return
        of_rows, factor = product(g, self.gradient.matrix.keys), self.gradient.factor
        of_x = None if self.of_x is None else self.of_x[rows]
        if sums_by_product:
            self.of_scale.append(sum_with_rows(of_rows, self.gradient.matrix.x[rows], factor, of_x))
        elif of_x is not None:
            scale_rows(of_rows, factor, of_x)

    def products(self) -> tuple[Tensor | None, Tensor | None]:
        """Gradients of x and y; where y is x that of both, and nothing."""
        of_y = self.of_y
        if of_y is not None:
            dtype = torch.float32 if self.is_both else self.gradient.dtypes[1]
            out = of_y if of_y.dtype == dtype else torch.empty_like(of_y, dtype=dtype)
            of_y = scale_rows(of_y, self.gradient.factor, out)
        if not self.is_both or self.of_x is None or of_y is None:
            return self.of_x, of_y
        return self.of_x.add_(of_y), None

    def sums(self) -> tuple[Tensor | None, ...]:
        """Gradients of scale, bias, and the biases of rows and of columns."""
        unit = self.gradient.unit
        of_scale = row_sums = col_sums = of_bias = None
        if self.of_scale:
            of_scale = torch.cat(self.of_scale).sum() * unit
            of_scale = of_scale * 0.5 if self.gradient.is_half else of_scale
        if self.needs.sums:
            row_sums = torch.cat(self.row_sums) * unit
            col_sums = torch.stack(self.col_sums).sum(0) * unit
            of_bias = row_sums.sum()
            if self.gradient.matrix.y is None:
                row_sums = row_sums + col_sums
            if self.gradient.is_half:
                of_bias = row_sums.sum() * 0.5
        return of_scale, of_bias, row_sums, col_sums
