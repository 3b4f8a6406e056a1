"""Parts of the plain formulas, over whole matrices."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def diagonal(x: Tensor) -> Tensor:
    """The index of every row."""
    return torch.arange(len(x), device=x.device)


def identity(x: Tensor) -> Tensor:
    """Which pairs of rows are of one row and itself, (N, N) bool."""
    return torch.eye(len(x), dtype=torch.bool, device=x.device)


def same(row: Tensor, col: Tensor) -> Tensor:
    """Which pairs have equal ids, (N, M) bool; −1 is equal to nothing."""
    return (row[:, None] == col) & (row[:, None] >= 0)


def masked(logits: Tensor, keep: Tensor) -> Tensor:
    """Logits of which the others are −∞."""
    return logits.masked_fill(~keep, -math.inf)


def cross_entropy(logits: Tensor, **options: Any) -> Tensor:
    """Of each row against the column of its own index."""
    return F.cross_entropy(logits, diagonal(logits), **options)


def both_ways(logits: Tensor, **options: Any) -> Tensor:
    """The mean of the rows' cross-entropy and the columns'."""
    rows, columns = (cross_entropy(side, **options) for side in (logits, logits.T))
    return (rows + columns) / 2


def several_positives(logits: Tensor, positive: Tensor) -> Tensor:
    """The cross-entropy of each row with all its positives alike; rows without any are left out."""
    count = positive.sum(1)
    total = torch.where(positive, logits, 0.0).sum(1)
    loss = logits.logsumexp(1) - total / count.clamp(min=1)
    return loss[count > 0].mean()
