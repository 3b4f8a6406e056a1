"""The gradient of the scalar bias of softmax_similarity, in closed form and in float64.

    grad_bias = Σ_ij G_ij

G is that of softmax_similarity.py. The counted entries of a softmax sum to 1. So with a, b, c, d
the gradients of row_lse, col_lse, row_pos and col_pos

    grad_bias = Σ_i a_i·[row_lse_i > −∞] + Σ_j b_j·[col_lse_j > −∞]
              + Σ_i c_i·(positives of row i) + Σ_j d_j·(positives of column j)

where row_pos and col_pos are sums. If they are log-sum-exps, their softmaxes sum to 1 as well, and
[row_pos_i > −∞] stands in place of the number of positives.

Labels are sorted, so the matrix of pairs is never formed and a GPU is never waited for.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmcore.backends.counts import count_equal
from mmcore.backends.inputs import SimilarityInputs, SoftmaxStatistics, SoftmaxUpstream


def bias_gradient(
    inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream
) -> Tensor:
    """0-D float64, on the device of x."""
    total = _of_softmaxes(statistics.row_lse, upstream.row_lse)
    if inputs.has_columns:
        total = total + _of_softmaxes(statistics.col_lse, upstream.col_lse)
    if inputs.positives == "log_sum_exp":
        total = total + _of_softmaxes(statistics.row_pos, upstream.row_pos)
        if inputs.has_columns:
            total = total + _of_softmaxes(statistics.col_pos, upstream.col_pos)
        return total
    return total + _of_sums(inputs, upstream)


def with_bias_gradient(backward: Callable[..., tuple[Tensor, ...]]) -> Callable[..., Any]:
    """The backward of a backend that leaves out the gradient of the bias, with that gradient."""

    def complete(*arguments: Any) -> tuple[Tensor, ...]:
        gradients, bias = backward(*arguments), arguments[3]
        if bias is None or not arguments[-1][3]:
            return gradients
        inputs, statistics = SimilarityInputs(*arguments[:15]), SoftmaxStatistics(*arguments[15:20])
        grad_bias = bias_gradient(inputs, statistics, SoftmaxUpstream(*arguments[20:24]))
        return (*gradients[:3], grad_bias.to(bias.dtype), *gradients[4:])

    return complete


def _of_softmaxes(lse: Tensor, upstream: Tensor) -> Tensor:
    """The sum of the gradients, without softmaxes of nothing; NaN where a log-sum-exp is."""
    return torch.where(lse == -torch.inf, 0, upstream.double() + (lse - lse)).sum()


def _of_sums(inputs: SimilarityInputs, upstream: SoftmaxUpstream) -> Tensor:
    """The part of positives whose logits are summed: a gradient times how many there are."""
    row_pos, col_pos = upstream.row_pos.double(), upstream.col_pos.double()
    if inputs.target is not None:
        of_rows = row_pos + col_pos[inputs.target.clamp(min=0)] if inputs.has_columns else row_pos
        return torch.where(inputs.target < 0, 0, of_rows).sum()
    if inputs.row_label is None:
        return row_pos.new_zeros(())
    inputs = inputs.spelled_out()
    assert inputs.row_label is not None
    assert inputs.col_label is not None
    row_label, col_label = inputs.row_label, inputs.col_label
    row_group, col_group = inputs.row_group, inputs.col_group
    total = (row_pos * _count_positives(row_label, row_group, col_label, col_group)).sum()
    if inputs.has_columns:
        count = _count_positives(col_label, col_group, row_label, row_group)
        total = total + (col_pos * count).sum()
    return total


def _count_positives(
    label: Tensor, group: Tensor | None, other_label: Tensor, other_group: Tensor | None
) -> Tensor:
    """How many of the others each id has as positives: equal labels, but not equal groups too."""
    label, other_label = label.long(), other_label.long()
    count = count_equal(label, other_label)
    if group is None or other_group is None:
        return count
    labels, other_labels = _ranks(label, other_label)
    groups, other_groups = _ranks(group.long(), other_group.long())
    size = len(groups) + len(other_groups)
    return count - count_equal(_both(labels, groups, size), _both(other_labels, other_groups, size))


def _both(label: Tensor, group: Tensor, size: int) -> Tensor:
    """One number for two ranks below `size`; −1 where either is −1."""
    return torch.where((label == -1) | (group == -1), -1, label * size + group)


def _ranks(ids: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers below the count of all ids, equal where the ids are; −1 stays −1."""
    ordered = torch.cat([ids, others]).sort().values
    one, other = (
        torch.where(side == -1, -1, torch.searchsorted(ordered, side)) for side in (ids, others)
    )
    return one, other
