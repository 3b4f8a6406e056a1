"""softmax_similarity in plain torch; the formulas: ops/softmax_similarity.py."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.reference.log_sum_exp import log_sum_exp, weighted_softmax
from mmcore.backends.reference.slabs import Slab, matrix_by_slabs, widened


def forward(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    matrix = widened(inputs)
    x, columns = matrix.x, matrix.keys.shape[0] if matrix.has_columns else 0
    row_lse, row_pos = (x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(2))
    is_joined = matrix.positives == "log_sum_exp"
    nothing, add = (-torch.inf, torch.logaddexp) if is_joined else (0.0, torch.add)
    col_lse = x.new_full((columns,), -torch.inf, dtype=torch.float64)
    col_pos = torch.full_like(col_lse, nothing)
    for slab in matrix_by_slabs(matrix):
        counted = slab.logits.masked_fill(~slab.masks.counted(matrix.denominator), -torch.inf)
        row_lse[slab.rows] = log_sum_exp(counted, 1)
        row_pos[slab.rows] = _positives(slab, 1, matrix.positives)
        if matrix.has_columns:
            col_lse = torch.logaddexp(col_lse, log_sum_exp(counted, 0))
            col_pos = add(col_pos, _positives(slab, 0, matrix.positives))
    kept = x.new_empty(kept_size, dtype=torch.float32)
    return SoftmaxStatistics(row_lse, col_lse, row_pos, col_pos, kept)


def backward(
    inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream,
    wanted: SoftmaxWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    matrix = widened(inputs)
    x, y = matrix.x, matrix.keys
    grad_x, grad_y = (z.new_zeros(z.shape) for z in (x, y))
    per_row, per_column = (z.new_zeros(z.shape[0], dtype=torch.float64) for z in (x, y))
    grad_scale = per_row.new_zeros(())
    for slab in matrix_by_slabs(matrix):
        gradient = _gradient(slab, matrix, statistics, upstream)
        grad_products = matrix.scale * gradient
        grad_x[slab.rows] = grad_products @ y
        grad_y += grad_products.T @ x[slab.rows]
        grad_scale += (gradient * slab.products).sum()
        per_row[slab.rows] = gradient.double().sum(1)
        per_column += gradient.double().sum(0)
    if inputs.y is None:
        grad_x, per_row = grad_x + grad_y, per_row + per_column
    return grad_x, grad_y, grad_scale, per_row, per_column


def _positives(slab: Slab, dim: int, positives: str) -> Tensor:
    """Log-sum-exp or sum of the logits of positives."""
    if positives == "log_sum_exp":
        return log_sum_exp(slab.logits.masked_fill(~slab.masks.positive, -torch.inf), dim)
    return slab.logits.double().masked_fill(~slab.masks.positive, 0).sum(dim)


def _gradient(
    slab: Slab, matrix: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream
) -> Tensor:
    """G of a slab."""
    rows, logits = slab.rows, slab.logits
    row_lse, grad_row_lse = statistics.row_lse[rows], upstream.row_lse[rows]
    gradient = weighted_softmax(logits, row_lse[:, None], grad_row_lse[:, None])
    if matrix.has_columns:
        gradient += weighted_softmax(logits, statistics.col_lse[None], upstream.col_lse[None])
    gradient.masked_fill_(~slab.masks.counted(matrix.denominator), 0)
    # At a positive, softmax − 1 may be the difference of equal numbers: formed in float64.
    row, column = torch.nonzero(slab.masks.positive, as_tuple=True)
    logit = logits[row, column].double()
    at_positive = torch.zeros_like(logit)
    sides = [(row, row_lse, grad_row_lse, statistics.row_pos[rows], upstream.row_pos[rows])]
    if matrix.has_columns:
        sides.append(
            (column, statistics.col_lse, upstream.col_lse, statistics.col_pos, upstream.col_pos)
        )
    for place, lse, grad_lse, pos, grad_pos in sides:
        if matrix.denominator != "negatives":
            at_positive += _softmax(logit, lse[place], grad_lse[place])
        if matrix.positives == "log_sum_exp":
            at_positive += _softmax(logit, pos[place], grad_pos[place])
        else:
            at_positive += grad_pos[place]
    gradient[row, column] = at_positive.to(gradient.dtype)
    return gradient


def _softmax(logit: Tensor, lse: Tensor, weight: Tensor) -> Tensor:
    return (weight * (logit - lse).exp()).masked_fill_(lse == -torch.inf, 0)
