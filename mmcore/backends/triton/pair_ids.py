"""Labels and groups as the kernels compare them, and how many positives labels make.

Ids are any 64-bit integers. Kernels compare their ranks among all ids that occur: two ranks are
equal where the ids are, and they fit 32 bits, which halves the registers of a tile's comparisons.
Nothing here waits for the device, because the host knows every size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.counts import count_equal


def ranks(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """int32, equal where the ids are; −1 stays −1."""
    ordered = torch.cat([row, col]).sort().values

    def rank(ids: Tensor) -> Tensor:
        return torch.where(ids == -1, -1, torch.searchsorted(ordered, ids)).int()

    return rank(row), rank(col)


def count_positives(
    label: Tensor | None, other_label: Tensor | None, group: Tensor | None,
    other_group: Tensor | None,
) -> Tensor | None:  # fmt: skip
    """How many positives each label has among the other side's, int64; None without labels."""
    if label is None or other_label is None:
        return None
    count = count_equal(label.long(), other_label.long())
    if group is None or other_group is None:
        return count
    return count - count_equal(_both(label, group), _both(other_label, other_group))


def _both(label: Tensor, group: Tensor) -> Tensor:
    """Equal where both are; −1 where either matches nothing."""
    return torch.where((label == -1) | (group == -1), -1, (label.long() << 32) + group)
