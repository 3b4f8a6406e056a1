"""Gradients of the statistics of the similarity matrix: the launches, and what is O(N + M)."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mmcore.backends.calls import as_inputs
from mmcore.backends.triton.gradient import TERMS, store_gradient_kernel
from mmcore.backends.triton.launch import chunk_rows
from mmcore.backends.triton.matrix import LOG2_E, BiasFactors, Matrix, Plan, sides, split
from mmcore.backends.triton.products import add_product, product


def softmax_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, row_lse, col_lse, _ = arguments[:17]
    *upstream, wanted = arguments[17:]
    matrix = Matrix.of(*described)
    if not matrix.has_columns:
        col_lse = row_lse.new_full((matrix.shape[1],), -torch.inf)
        upstream[1] = upstream[3] = torch.zeros_like(col_lse)
    unit = _unit(*upstream)
    row_grad, col_grad, row_pos_grad, col_pos_grad = (part / unit for part in upstream)
    plan, row_factors, col_factors, is_shared = sides(matrix)
    row_terms = _side_terms(
        matrix, True, row_lse, row_grad, row_pos_grad, plan, row_factors, col_factors, is_shared
    )
    col_terms = _side_terms(
        matrix, False, col_lse, col_grad, col_pos_grad, plan, col_factors, row_factors, is_shared
    )
    at_target = None
    if matrix.target is not None:
        at_target = _target_gradients(
            matrix, row_lse, col_lse, row_grad, col_grad, row_pos_grad, col_pos_grad
        )
    is_symmetric = described[1] is None
    needs = (wanted[0], wanted[1] or (is_symmetric and wanted[0]), any(wanted[3:]))
    found = _products_with_gradient(matrix, plan, row_terms, col_terms, at_target, needs)
    factor = (matrix.scale.double() * unit).float()
    of_x, of_y = (None if part is None else part.mul_(factor) for part in found[:2])
    if is_symmetric and of_x is not None and of_y is not None:
        of_x += of_y
    of_scale, row_sums, col_sums = (part.mul_(unit) for part in found[2:])
    values = (of_x, of_y, of_scale, row_sums.sum(), row_sums, col_sums)
    return as_inputs(values, described[:6], wanted)


def _unit(*upstream: Tensor) -> Tensor:
    """A power of two near the largest upstream gradient: G over it fits into float16."""
    largest = torch.stack(
        [part.abs().max() if part.numel() else part.new_zeros(()) for part in upstream]
    ).max()
    unit = torch.exp2(largest.log2().floor())
    return torch.where((largest > 0) & unit.isfinite(), unit, 1.0)


def _side_terms(
    matrix: Matrix, of_rows: bool, lse: Tensor, weight: Tensor, positive: Tensor, plan: Plan,
    own: BiasFactors, other: BiasFactors, is_shared: Tensor,
) -> Tensor:  # fmt: skip
    """What G needs of one side: (TERMS, N) or (TERMS, M) float32, in the order of gradient.py."""
    bias = matrix.own_bias(of_rows)
    side_bias = matrix.row_bias if of_rows else matrix.col_bias
    is_counted = lse != -torch.inf
    level = torch.where(is_counted, (lse - bias) * LOG2_E, torch.inf)
    weight = torch.where(is_counted, weight, 0.0)
    exponent = plan.shift + other.largest - level
    factor = torch.where(weight == 0, 0.0, weight * torch.exp2(exponent)).float()
    is_normal = factor.abs() >= torch.finfo(torch.float32).tiny
    is_trusted = ((weight == 0) | ((exponent <= 86) & is_normal)) & is_shared
    ones = torch.ones_like(factor)
    terms = torch.stack([
        factor, *split(level), weight.float(), positive.float(), is_trusted.float(),
        ones if own.factor is None else own.factor,
        ones if side_bias is None else side_bias.float(),
    ])  # fmt: skip
    assert len(terms) == TERMS
    return terms


def _target_gradients(
    matrix: Matrix, row_lse: Tensor, col_lse: Tensor, row_grad: Tensor, col_grad: Tensor,
    row_pos_grad: Tensor, col_pos_grad: Tensor,
) -> Tensor:  # fmt: skip
    """G of each row's target, formed in float64."""
    assert matrix.target is not None
    known = matrix.target.clamp(0, matrix.shape[1] - 1)
    logits = matrix.target_logits()
    total = row_pos_grad + col_pos_grad[known]
    if matrix.denominator != "negatives":
        for lse, grad in ((row_lse, row_grad), (col_lse[known], col_grad[known])):
            softmax = (logits - lse).exp()
            total = total + torch.where((grad == 0) | (lse == -torch.inf), 0.0, grad * softmax)
    return torch.where(
        matrix.target == known, total, torch.where(matrix.target == -1, 0.0, torch.nan)
    ).float()


def _products_with_gradient(
    matrix: Matrix, plan: Plan, row_terms: Tensor, col_terms: Tensor, at_target: Tensor | None,
    needs: tuple[bool, bool, bool],
) -> tuple[Any, ...]:  # fmt: skip
    """G·y, Gᵀ·x, Σ G·⟨x, y⟩ and the sums of G by rows and columns, chunk by chunk.

    `needs` says which: G·y, Gᵀ·x, the sums by rows and columns.
    """
    (rows, columns), tile, dtype = matrix.shape, matrix.tile("gradient"), matrix.product_dtype
    totals = GradientTotals(matrix, *needs)
    size = chunk_rows(rows, columns, dtype.itemsize, tile.BM)
    chunk = torch.empty((size, columns), dtype=dtype, device=matrix.x.device)
    ids = matrix.ids()
    for first in range(0, rows, size):
        count = min(size, rows - first)
        blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
        g, parts = chunk[:count], totals.parts(blocks, tiles, count)
        for is_exact in (False, True):
            store_gradient_kernel[(blocks * tiles,)](
                matrix.x, matrix.keys, plan.numbers, row_terms, col_terms, ids[0],
                row_terms if at_target is None else at_target, *ids[1:], g, *parts, first, count,
                rows, columns, matrix.x.stride(0), matrix.keys.stride(0), g.stride(0),
                DENOMINATOR=matrix.denominator, HAS_ROW_BIAS=matrix.row_bias is not None,
                HAS_COL_BIAS=matrix.col_bias is not None, HAS_COLUMNS=matrix.has_columns,
                IS_PRECISE=dtype == torch.float32, IS_EXACT=is_exact, NEEDS_SUMS=needs[2],
                **matrix.flags(), **tile._asdict(),
            )  # fmt: skip
        totals.add(first, g, parts)
    return totals.of_x, totals.of_y, totals.of_scale, totals.row_sums, totals.col_sums


class GradientTotals:
    """What the chunks of G add up to: the products that are needed, float32, and sums, float64."""

    def __init__(self, matrix: Matrix, needs_x: bool, needs_y: bool, needs_sums: bool) -> None:
        x, y, dtype = matrix.x, matrix.keys, matrix.product_dtype
        self.left, self.right, self.needs_sums = x.to(dtype), y.to(dtype), needs_sums
        self.of_x = x.new_empty(x.shape, dtype=torch.float32) if needs_x else None
        self.of_y = y.new_zeros(y.shape, dtype=torch.float32) if needs_y else None
        self.of_scale = x.new_zeros((), dtype=torch.float64)
        self.row_sums, self.col_sums = (
            x.new_zeros(size, dtype=torch.float64) for size in matrix.shape
        )

    def parts(self, blocks: int, tiles: int, count: int) -> list[Tensor]:
        """Memory for the partial sums of a chunk: of the scale, of rows, of columns."""
        shapes = [(blocks * tiles,), (tiles, count), (blocks, self.col_sums.shape[0])]
        kept = shapes if self.needs_sums else [shapes[0], (0,), (0,)]
        return [self.of_scale.new_empty(shape) for shape in kept]

    def add(self, first: int, g: Tensor, parts: list[Tensor]) -> None:
        """One chunk, from row `first` on."""
        rows = slice(first, first + g.shape[0])
        if self.of_x is not None:
            self.of_x[rows] = product(g, self.right)
        if self.of_y is not None:
            add_product(self.of_y, g.T, self.left[rows])
        self.of_scale += parts[0].sum()
        if self.needs_sums:
            self.row_sums[rows] = parts[1].sum(0)
            self.col_sums += parts[2].sum(0)
