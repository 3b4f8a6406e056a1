"""Labels and groups as the kernels compare them, and how many positives labels make.

Ids are any 64-bit integers. Their ranks among all that occur are equal where they are, and fit 32
bits, which halves what a tile's comparisons hold. Sorting and searching wait for nothing: every
size is known to the host.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.ids import count_equal_ids as count_equal


def ranks(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """int32, equal where the ids are; −1 stays −1."""
    ordered = torch.cat([row, col]).sort().values

    def rank(ids: Tensor) -> Tensor:
        return torch.where(ids == -1, -1, torch.searchsorted(ordered, ids)).int()

    return rank(row), rank(col)


def count_positives(
    label: Tensor, other_label: Tensor, group: Tensor | None, other_group: Tensor | None
) -> Tensor:
    """How many positives each label of one side has among the other's; int64."""
    count = count_equal(label.long(), other_label.long())
    if group is None or other_group is None:
        return count
    return count - count_equal(_both(label, group), _both(other_label, other_group))


def _both(label: Tensor, group: Tensor) -> Tensor:
    """Equal where both are; −1 where either matches nothing."""
    return torch.where((label == -1) | (group == -1), -1, (label.long() << 32) + group)
