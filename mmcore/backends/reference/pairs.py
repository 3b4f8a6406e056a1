"""Masks of the pairs that ops/pairs.py describes, for a slab of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs


class Masks(NamedTuple):
    """(rows, M) booleans."""

    positive: Tensor
    excluded: Tensor  # left out of every denominator

    def counted(self, denominator: str) -> Tensor:
        """The pairs that enter the denominators."""
        if denominator == "positives":
            return self.positive
        return ~(self.excluded | self.positive) if denominator == "negatives" else ~self.excluded


def check_target(inputs: SimilarityInputs) -> None:
    """Raises ValueError where a target is neither a column nor −1, which means no positive."""
    if inputs.target is None:
        return
    columns = inputs.keys.shape[0]
    lowest, highest = inputs.target.min().item(), inputs.target.max().item()
    if lowest < -1 or highest >= columns:
        outside = lowest if lowest < -1 else highest
        raise ValueError(f"target must be in [-1, {columns}), got {outside}")


def masks(inputs: SimilarityInputs, rows: slice) -> Masks:
    """Of some rows and all columns; the inputs are spelled out."""
    columns = inputs.keys.shape[0]
    excluded = _matches(inputs.x, inputs.row_group, inputs.col_group, rows, columns)
    if inputs.target is None:
        labels = _matches(inputs.x, inputs.row_label, inputs.col_label, rows, columns)
        return Masks(labels & ~excluded, excluded)
    column = torch.arange(columns, device=inputs.x.device)
    positive = inputs.target[rows, None] == column
    return Masks(positive, excluded & ~positive)


def _matches(
    x: Tensor, row: Tensor | None, col: Tensor | None, rows: slice, columns: int
) -> Tensor:
    """Whose ids are equal; nobody's where there are none."""
    if row is None or col is None:
        count = len(range(*rows.indices(x.shape[0])))
        return torch.zeros(count, columns, dtype=torch.bool, device=x.device)
    return (row[rows, None] == col) & (row[rows, None] != -1)
