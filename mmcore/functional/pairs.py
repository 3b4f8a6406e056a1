"""Checks of the vectors that say which pairs are positives and which are left out."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.ops.pairs import Pairs


def as_pairs(
    x: Tensor,
    y: Tensor,
    target: Tensor | None,
    row_label: Tensor | None,
    col_label: Tensor | None,
    row_group: Tensor | None,
    col_group: Tensor | None,
    has_diagonal: bool = True,
) -> Pairs:
    """The checked vectors; the diagonal where neither a target nor labels are given.

    Without `has_diagonal` that is left to the caller: the target is None then.

    Where y is x the vectors of the columns may be left out, and are those of the rows.
    """
    row_label, col_label = _sides("label", row_label, col_label, x, y)
    row_group, col_group = _sides("group", row_group, col_group, x, y)
    if row_label is not None:
        if target is not None:
            raise ValueError("target must be None where row_label and col_label are given")
    elif target is not None:
        target = check.check_indices("target", target, x.shape[0], "x", x)
    elif has_diagonal:
        target = _diagonal(x, y)
    return Pairs(target, row_label, col_label, row_group, col_group)


def _sides(
    kind: str, row: Tensor | None, col: Tensor | None, x: Tensor, y: Tensor
) -> tuple[Tensor | None, Tensor | None]:
    if col is None and y is x:
        col = row
    for given, missing, name in ((row, col, f"col_{kind}"), (col, row, f"row_{kind}")):
        if given is not None and missing is None:
            raise ValueError(f"{name} must be given together with the other side's, got None")
    if row is None:
        return None, None
    rows = check.check_indices(f"row_{kind}", row, x.shape[0], "x", x)
    columns = check.check_indices(f"col_{kind}", col, y.shape[0], "y", x)
    # One vector for both sides stays one, which is how half of the matrix comes to be enough.
    return rows, rows if col is row else columns


def _diagonal(x: Tensor, y: Tensor) -> Tensor:
    rows, columns = x.shape[0], y.shape[0]
    if rows > columns:
        raise ValueError(
            f"target must be given where x has more rows than y: got {rows} and {columns}"
        )
    return torch.arange(rows, device=x.device)


def mirrored(pairs: Pairs) -> Pairs | None:
    """The pairs of a matrix that is its own transpose, as the ops take them; None if they differ.

    The columns' vectors become None.
    """
    same_labels = pairs.col_label is pairs.row_label
    same_groups = pairs.col_group is pairs.row_group
    if not (same_labels and same_groups):
        return None
    return pairs._replace(col_label=None, col_group=None)
