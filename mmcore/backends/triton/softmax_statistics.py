"""Statistics of the similarity matrix, forward and backward: the launches, and what is O(N + M)."""

from __future__ import annotations

from typing import Any

import torch
import triton
from torch import Tensor

from mmcore.backends import workspace
from mmcore.backends.triton.exponential_sums import (
    running_log_sum_exp_kernel,
    sum_exponentials_kernel,
)
from mmcore.backends.triton.gradient import TERMS, store_gradient_kernel
from mmcore.backends.triton.matrix import LOG2_E, BiasFactors, Matrix, Plan
from mmcore.backends.triton.positives import column_positives_kernel
from mmcore.backends.triton.products import add_product, product

LN_2 = 1 / LOG2_E
# A sum below may lack entries that were flushed to 0, each less than 2⁻⁴⁰ of it above.
SMALLEST_TRUSTED_SUM = 2.0**-86
# Programs of a forward that keep the largest of GPUs busy several times over.
ENOUGH_PROGRAMS = 2048
COLUMN_TILE = (64, 64)


class Side:
    """One side of the matrix: what E sums up to along its rows, or its columns."""

    def __init__(self, total: Tensor, positive: Tensor | None, count: Tensor | None) -> None:
        self.total = total.sum(0, dtype=torch.float64)
        self.positive = None if positive is None else positive.sum(0, dtype=torch.float64)
        self.count = None if count is None else count.sum(0, dtype=torch.float64)


def softmax_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept_size = arguments
    matrix = Matrix.of(*described)
    plan = Plan.of(matrix)
    row_factors, col_factors = _bias_factors(matrix)
    is_shared = plan.is_usable & row_factors.are_normal & col_factors.are_normal
    rows, columns = _sum_exponentials(matrix, plan, row_factors, col_factors)
    row = _statistics(matrix, plan, rows, col_factors, is_shared, is_rows=True)
    kept = matrix.x.new_empty(kept_size, dtype=torch.float32)
    if columns is None:
        nothing = row[0].new_empty(0)
        return row[0], nothing, row[1], nothing.clone(), kept
    col = _statistics(matrix, plan, columns, row_factors, is_shared, is_rows=False)
    return row[0], col[0], row[1], col[1], kept


def _bias_factors(matrix: Matrix) -> tuple[BiasFactors, BiasFactors]:
    return BiasFactors.of(matrix.row_bias, matrix.x), BiasFactors.of(matrix.col_bias, matrix.x)


def _sum_exponentials(
    matrix: Matrix, plan: Plan, row_factors: BiasFactors, col_factors: BiasFactors
) -> tuple[Side, Side | None]:
    rows, columns = matrix.shape
    tile, x = matrix.tile("sums"), matrix.x
    row_blocks, tiles = triton.cdiv(rows, tile.BM), triton.cdiv(columns, tile.BN)
    strips = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, row_blocks))
    strip_tiles = triton.cdiv(tiles, strips)
    strips = triton.cdiv(tiles, strip_tiles)
    has_labels = matrix.row_label is not None

    def partial(parts: int, size: int, is_there: bool = True) -> Tensor:
        return torch.empty(
            (parts, size) if is_there else (0,), dtype=torch.float32, device=x.device
        )

    of_rows = [partial(strips, rows, n == 0 or has_labels) for n in range(3)]
    of_columns = [
        partial(row_blocks, columns, matrix.has_columns and (n == 0 or has_labels))
        for n in range(3)
    ]
    sum_exponentials_kernel[(row_blocks * strips,)](
        x, matrix.y, plan.numbers, matrix.scale.float(),
        _or(row_factors.factor, x), _or(col_factors.factor, x),
        _or(matrix.row_bias, x), _or(matrix.col_bias, x), *matrix.ids(),
        of_rows[0], of_columns[0], of_rows[1], of_rows[2], of_columns[1], of_columns[2],
        rows, columns, x.stride(0), matrix.y.stride(0), strip_tiles,
        DENOMINATOR=matrix.denominator, HAS_ROW_BIAS=matrix.row_bias is not None,
        HAS_COL_BIAS=matrix.col_bias is not None, HAS_COLUMNS=matrix.has_columns,
        IS_PRECISE=matrix.product_dtype == torch.float32,
        **matrix.flags(), **tile._asdict(),
    )  # fmt: skip
    row_side = Side(*(part if part.numel() else None for part in of_rows))  # type: ignore[arg-type]
    if not matrix.has_columns:
        return row_side, None
    return row_side, Side(*(part if part.numel() else None for part in of_columns))  # type: ignore[arg-type]


def _statistics(
    matrix: Matrix, plan: Plan, sums: Side, other: BiasFactors, is_shared: Tensor, is_rows: bool
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp and positives of one side."""
    own_bias = _own_bias(matrix, is_rows)
    shared = sums.total.log() + (plan.shift + other.largest) * LN_2
    is_flagged = (sums.total < SMALLEST_TRUSTED_SUM) | ~is_shared
    others = (
        torch.where(is_flagged, _running(matrix, plan, is_flagged, is_rows) * LN_2, shared)
        + own_bias
    )
    if matrix.target is None:
        if sums.positive is None or sums.count is None:
            return others, torch.zeros_like(others)
        return others, torch.where(sums.count > 0, sums.positive + sums.count * own_bias, 0.0)
    logits = matrix.target_logits()
    has_target = matrix.target != -1
    if is_rows:
        positive = torch.where(has_target, logits, 0.0)
        lse = torch.where(has_target, logits, -torch.inf)
    else:
        positive, lse = _column_positives(matrix, logits)
    if matrix.denominator == "negatives":
        # A target outside the matrix spoils its row whatever is counted.
        return torch.where(positive.isnan(), positive, others), positive
    return torch.logaddexp(others, lse), positive


def _own_bias(matrix: Matrix, of_rows: bool) -> Tensor:
    """What all logits of a row, or of a column, share; float64, 0-D where all have the same."""
    bias = matrix.row_bias if of_rows else matrix.col_bias
    return matrix.offset() if bias is None else matrix.offset() + bias.double()


def _running(matrix: Matrix, plan: Plan, is_flagged: Tensor, is_rows: bool) -> Tensor:
    rows, columns = matrix.shape
    size = rows if is_rows else columns
    out = torch.full((size,), -torch.inf, dtype=torch.float64, device=matrix.x.device)
    tile, x, y = matrix.tile("narrow"), matrix.x, matrix.y
    bias_of_other = matrix.col_bias if is_rows else matrix.row_bias
    running_log_sum_exp_kernel[(triton.cdiv(size, tile.BM if is_rows else tile.BN),)](
        x, y, plan.numbers, _or(matrix.row_bias, x), _or(matrix.col_bias, x),
        is_flagged.to(torch.int8), out, *matrix.ids(), rows, columns, x.stride(0), y.stride(0),
        BY_COLUMNS=not is_rows, DENOMINATOR=matrix.denominator,
        HAS_BIAS=bias_of_other is not None, **matrix.flags(), **tile._asdict(),
    )  # fmt: skip
    return out


def _column_positives(matrix: Matrix, logits: Tensor) -> tuple[Tensor, Tensor]:
    assert matrix.target is not None
    rows, columns = matrix.shape
    positive = torch.empty(columns, dtype=torch.float64, device=logits.device)
    lse = torch.empty_like(positive)
    column_positives_kernel[(triton.cdiv(columns, COLUMN_TILE[1]),)](
        matrix.target.contiguous(), logits, positive, lse, rows, columns, *COLUMN_TILE
    )
    return positive, lse


def _or(tensor: Tensor | None, stand_in: Tensor) -> Tensor:
    return stand_in if tensor is None else tensor.float().contiguous()


# Backward


def softmax_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, row_lse, col_lse, _, row_grad, col_grad, row_pos_grad, col_pos_grad, wanted = (
        arguments
    )
    matrix = Matrix.of(*described)
    plan = Plan.of(matrix)
    if not matrix.has_columns:
        col_lse = row_lse.new_full((matrix.shape[1],), -torch.inf)
        col_grad = col_pos_grad = torch.zeros_like(col_lse)
    unit = _unit(row_grad, col_grad, row_pos_grad, col_pos_grad)
    row_factors, col_factors = _bias_factors(matrix)
    is_shared = plan.is_usable & row_factors.are_normal & col_factors.are_normal
    row_terms = _side_terms(
        matrix, True, row_lse, row_grad / unit, row_pos_grad / unit, plan, row_factors, col_factors,
        is_shared,
    )  # fmt: skip
    col_terms = _side_terms(
        matrix, False, col_lse, col_grad / unit, col_pos_grad / unit, plan, col_factors,
        row_factors, is_shared,
    )  # fmt: skip
    at_target = None
    if matrix.target is not None:
        at_target = _target_gradients(
            matrix,
            row_lse,
            col_lse,
            row_grad / unit,
            col_grad / unit,
            row_pos_grad / unit,
            col_pos_grad / unit,
        )
    sums = _products_with_gradient(matrix, plan, row_terms, col_terms, at_target, any(wanted[3:]))
    return _finish(matrix, described, sums, unit, wanted)


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
    bias = _own_bias(matrix, of_rows)
    side_bias = matrix.row_bias if of_rows else matrix.col_bias
    is_counted = lse != -torch.inf
    level = torch.where(is_counted, (lse - bias) * LOG2_E, torch.inf)
    weight = torch.where(is_counted, weight, 0.0)
    exponent = plan.shift + other.largest - level
    factor = torch.where(weight == 0, 0.0, weight * torch.exp2(exponent)).float()
    is_normal = factor.abs() >= torch.finfo(torch.float32).tiny
    is_trusted = ((weight == 0) | ((exponent <= 86) & is_normal)) & is_shared
    high = level.float()
    low = torch.where(high.isfinite(), level - high.double(), 0.0)
    ones = torch.ones_like(factor)
    terms = torch.stack([
        factor, high, low.float(), weight.float(), positive.float(), is_trusted.float(),
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
    needs_sums: bool,
) -> tuple[Tensor, ...]:  # fmt: skip
    """G·y, Gᵀ·x, Σ G·⟨x, y⟩ and the sums of G by rows and columns, chunk by chunk."""
    rows, columns = matrix.shape
    tile, dtype = matrix.tile("gradient"), matrix.product_dtype
    left, right = matrix.x.to(dtype), matrix.y.to(dtype)
    of_x = torch.empty(matrix.x.shape, dtype=torch.float32, device=matrix.x.device)
    of_y = torch.zeros(matrix.y.shape, dtype=torch.float32, device=matrix.x.device)
    row_sums = torch.zeros(rows, dtype=torch.float64, device=matrix.x.device)
    col_sums = torch.zeros(columns, dtype=torch.float64, device=matrix.x.device)
    of_scale = col_sums.new_zeros(())
    size = chunk_rows(rows, columns, dtype.itemsize, tile.BM)
    chunk = torch.empty((size, columns), dtype=dtype, device=matrix.x.device)
    for first in range(0, rows, size):
        count = min(size, rows - first)
        blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
        g = chunk[:count]
        scale_part, row_part, col_part = (
            torch.empty(shape if is_needed else (0,), dtype=torch.float64, device=g.device)
            for shape, is_needed in (
                ((blocks * tiles,), True), ((tiles, count), needs_sums),
                ((blocks, columns), needs_sums),
            )
        )  # fmt: skip
        for is_exact in (False, True):
            store_gradient_kernel[(blocks * tiles,)](
                matrix.x, matrix.y, plan.numbers, row_terms, col_terms, matrix.ids()[0],
                row_terms if at_target is None else at_target, *matrix.ids()[1:], g, scale_part,
                row_part, col_part, first, count, rows, columns, matrix.x.stride(0),
                matrix.y.stride(0), g.stride(0), DENOMINATOR=matrix.denominator,
                HAS_ROW_BIAS=matrix.row_bias is not None, HAS_COL_BIAS=matrix.col_bias is not None,
                HAS_COLUMNS=matrix.has_columns, IS_PRECISE=dtype == torch.float32,
                IS_EXACT=is_exact, NEEDS_SUMS=needs_sums, **matrix.flags(), **tile._asdict(),
            )  # fmt: skip
        of_x[first : first + count] = product(g, right)
        add_product(of_y, g.T, left[first : first + count])
        of_scale += scale_part.sum()
        if needs_sums:
            row_sums[first : first + count] = row_part.sum(0)
            col_sums += col_part.sum(0)
    return of_x, of_y, of_scale, row_sums, col_sums


def chunk_rows(rows: int, columns: int, itemsize: int, block: int) -> int:
    """Rows of G that the workspace holds, in whole blocks, at least one."""
    whole = workspace.current() // (columns * itemsize) // block * block
    return max(block, min(whole, triton.cdiv(rows, block) * block))


def _finish(
    matrix: Matrix, described: list[Any], sums: tuple[Tensor, ...], unit: Tensor, wanted: list[bool]
) -> tuple[Tensor, ...]:
    of_x, of_y, of_scale, row_sums, col_sums = sums
    factor = (matrix.scale.double() * unit).float()
    grad_x = of_x + of_y if described[1] is None else of_x
    gradients = (
        grad_x * factor, of_y * factor, of_scale * unit, row_sums.sum() * unit, row_sums * unit,
        col_sums * unit,
    )  # fmt: skip
    nothing = described[0].new_empty(0)
    return tuple(
        nothing.clone()
        if like is None or not is_wanted
        else value.to(like.dtype).reshape(like.shape)
        for value, like, is_wanted in zip(gradients, described[:6], wanted, strict=True)
    )
