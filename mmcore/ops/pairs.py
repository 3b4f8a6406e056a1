"""Which pairs (i, j) are positives, and which enter a denominator.

    P = {(i, j): j = target_i}                                     given by `target`, or
    P = {(i, j): row_label_i = col_label_j} \\ X                    given by labels
    X = {(i, j): row_group_i = col_group_j}                        excluded

−1 matches nothing. A target names one pair, so that pair stays although its groups match: equal
captions share a group, and each keeps its own image. Labels name classes, of which groups take
pairs away: a row is no positive of itself.

A denominator counts the pairs outside X ("all": positives too, "negatives": without them) or the
positives alone ("positives"). Everything is O(N + M) integers; only the reference makes masks.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmcore.backends.ids import count_equal_ids as count_equal_ids

DENOMINATORS = ("all", "negatives", "positives")
# What becomes of the logits of a row's, or column's, positives.
POSITIVES = ("sum", "log_sum_exp")


class Pairs(NamedTuple):
    """The five vectors of integers. Where y is x the columns' are None and mean the rows'."""

    target: Tensor | None  # (N,)
    row_label: Tensor | None  # (N,)
    col_label: Tensor | None  # (M,)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (M,)
