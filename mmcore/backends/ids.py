"""Labels and groups: as ranks, and how many pairs are equal.

Ids are any 64-bit integers, and −1 equals nothing. Everything goes by sorting and searching, which
never makes a GPU's host wait: it knows every size.
"""

from __future__ import annotations

import torch
from torch import Tensor


def count_equal_ids(ids: Tensor, others: Tensor) -> Tensor:
    """How many of the others equal each id."""
    ordered = others.sort().values
    first, end = (torch.searchsorted(ordered, ids, right=right) for right in (False, True))
    return torch.where(ids == -1, 0, end - first)


def ranks(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """int32, equal where the ids are; −1 stays −1."""
    ordered = (row if col is row else torch.cat([row, col])).sort().values

    def rank(ids: Tensor) -> Tensor:
        return torch.where(ids == -1, -1, torch.searchsorted(ordered, ids, out_int32=True))

    of_rows = rank(row)
    return of_rows, of_rows if col is row else rank(col)


def count_positives(
    label: Tensor, other_label: Tensor, group: Tensor | None, other_group: Tensor | None
) -> Tensor:
    """How many of the other side's rows each row matches by label and not by group; int64.

    Labels and groups are ranks, which fit 32 bits.
    """
    own, others = (ids.long() for ids in (label, other_label))
    count = count_equal_ids(own, others)
    if group is None or other_group is None:
        return count
    is_one_side = other_label is label and other_group is group
    both = _both(own, group)
    return count - count_equal_ids(both, both if is_one_side else _both(others, other_group))


def _both(label: Tensor, group: Tensor) -> Tensor:
    """Equal where both are; −1 where either matches nothing. The labels are int64."""
    return torch.where((label == -1) | (group == -1), -1, (label << 32) + group)
