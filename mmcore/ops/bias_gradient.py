"""The gradient of a softmax's scalar bias, in closed form, which no backend computes: O(N + M).

    grad_bias = Σ_ij G_ij = Σ_i a_i + Σ_j b_j + Σ_i c_i·n_i + Σ_j d_j·m_j

a, b, c, d are the upstream gradients of row_lse, col_lse, row_pos and col_pos, n_i and m_j how many
positives rows and columns have: every softmax sums to 1, and rows and columns without any entry
have none. Labels are counted by sorting. Where positives are log-sum-exps they are softmaxes too,
and c_i and d_j count once. It holds for log-sum-exps over more columns than these as well, once all
processes have added theirs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.ids import count_positives, ranks
from mmcore.backends.inputs import SimilarityInputs, SoftmaxStatistics, SoftmaxUpstream


def bias_gradient(
    inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream
) -> Tensor:
    """In the dtype of the bias."""
    assert inputs.bias is not None
    total = softmax_weights(statistics.row_lse, upstream.row_lse)
    if inputs.has_columns:
        total = total + softmax_weights(statistics.col_lse, upstream.col_lse)
    if inputs.positives == "log_sum_exp":
        total = total + softmax_weights(statistics.row_pos, upstream.row_pos)
        if inputs.has_columns:
            total = total + softmax_weights(statistics.col_pos, upstream.col_pos)
    else:
        total = total + sums_of_positives(inputs, upstream)
    return total.to(inputs.bias.dtype)


def softmax_weights(lse: Tensor, gradient: Tensor) -> Tensor:
    """The gradients of those that have an entry; NaN where a log-sum-exp is NaN or inf."""
    return torch.where(lse == -torch.inf, 0, gradient + 0 * lse).sum()


def sums_of_positives(inputs: SimilarityInputs, upstream: SoftmaxUpstream) -> Tensor:
    """The gradient through sums of positives."""
    if inputs.target is not None:
        named = inputs.target >= 0
        total = torch.where(named, upstream.row_pos, 0).sum()
        if inputs.has_columns:
            # A GPU's host does not see a target out of range, which made its row NaN.
            at = inputs.target.clamp(0, upstream.col_pos.shape[0] - 1)
            total = total + torch.where(named, upstream.col_pos[at], 0).sum()
        return total
    inputs = inputs.spelled_out()
    if inputs.row_label is None or inputs.col_label is None:
        return upstream.row_pos.new_zeros(())
    row_label, col_label = ranks(inputs.row_label, inputs.col_label)
    row_group = col_group = None
    if inputs.row_group is not None and inputs.col_group is not None:
        row_group, col_group = ranks(inputs.row_group, inputs.col_group)
    count = count_positives(row_label, col_label, row_group, col_group)
    total = _times(upstream.row_pos, count)
    if inputs.has_columns:
        count = count_positives(col_label, row_label, col_group, row_group)
        total = total + _times(upstream.col_pos, count)
    return total


def _times(gradient: Tensor, count: Tensor) -> Tensor:
    """Σ gradient·count; a gradient without a positive is left out, also where it is not finite."""
    return torch.where(count > 0, gradient * count, 0).sum()
