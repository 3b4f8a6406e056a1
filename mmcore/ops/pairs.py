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

import torch
from torch import Tensor

from mmcore.backends.counts import count_equal as count_equal

DENOMINATORS = ("all", "negatives", "positives")
# What becomes of the logits of a row's, or column's, positives.
POSITIVES = ("sum", "log_sum_exp")
SCHEMA = (
    "Tensor? target, Tensor? row_label, Tensor? col_label, Tensor? row_group, Tensor? col_group"
)


class Pairs(NamedTuple):
    """The five vectors of integers. Where y is x the columns' are None and mean the rows'."""

    target: Tensor | None  # (N,)
    row_label: Tensor | None  # (N,)
    col_label: Tensor | None  # (M,)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (M,)

    def check_target(self, columns: int) -> None:
        """Raises ValueError where a target is no column; -1, no positive, is none but allowed."""
        if self.target is None:
            return
        lowest, highest = self.target.min().item(), self.target.max().item()
        if lowest < -1 or highest >= columns:
            outside = lowest if lowest < -1 else highest
            raise ValueError(f"target must be in [-1, {columns}), got {outside}")

    def of_rows(self, rows: slice) -> Pairs:
        """The vectors of a slab of rows and of all columns, filled in where y is x."""

        def part(vector: Tensor | None) -> Tensor | None:
            return None if vector is None else vector[rows]

        col_label = self.row_label if self.col_label is None else self.col_label
        col_group = self.row_group if self.col_group is None else self.col_group
        return Pairs(
            part(self.target), part(self.row_label), col_label, part(self.row_group), col_group
        )

    def masks(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """(N, M) booleans: the positives P, and what is left out of every denominator."""
        excluded = _matches(self.row_group, self.col_group, logits)
        if self.target is None:
            return _matches(self.row_label, self.col_label, logits) & ~excluded, excluded
        column = torch.arange(logits.shape[1], device=logits.device)
        positive = self.target[:, None] == column
        return positive, excluded & ~positive


def counted(denominator: str, positive: Tensor, excluded: Tensor) -> Tensor:
    """(N, M) booleans: the pairs that enter the denominators."""
    if denominator == "positives":
        return positive
    return ~(excluded | positive) if denominator == "negatives" else ~excluded


def _matches(row: Tensor | None, col: Tensor | None, logits: Tensor) -> Tensor:
    if row is None:
        return torch.zeros_like(logits, dtype=torch.bool)
    col = row if col is None else col
    return (row[:, None] == col) & (row[:, None] != -1)
