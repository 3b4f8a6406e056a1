"""Features and labels of any library as tensors, and their rows some at a time."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.retrieval import arrays

PIECE_BYTES = 2**24  # of what is copied or computed at a time


def as_matrix(name: str, value: object) -> Tensor:
    """A matrix of floating-point numbers, which may be a file that is mapped into memory."""
    rows = arrays.as_tensor(name, value)
    check.check_matrix(name, rows)
    return rows


def as_labels(name: str, value: object, rows: Tensor, of: str) -> Tensor:
    """A class number, at least 0, for each row of `of`; int64, on the device of the rows."""
    labels = check.as_integers(name, arrays.as_tensor(name, value))
    if labels.shape != (rows.shape[0],):
        raise ValueError(
            f"{name} must have shape ({rows.shape[0]},) to match the rows of {of}, "
            f"got {tuple(labels.shape)}"
        )
    if bool((labels < 0).any()):
        raise ValueError(f"{name} must be at least 0, got {labels.min().item()}")
    return labels.to(rows.device)


def pieces(features: Tensor, width: int | None = None) -> Iterator[Tensor]:
    """The rows in float32, or in float64 where they are; whole where nothing has to be copied.

    With `width`, the numbers that each row makes, always in pieces. Of no rows, one piece of none.
    """
    is_plain = features.dtype in (torch.float32, torch.float64)
    rows = max(1, PIECE_BYTES // (8 * (width or features.shape[1])))
    if is_plain and width is None:
        rows = max(1, features.shape[0])
    for start in range(0, max(1, features.shape[0]), rows):
        piece = features[start : start + rows]
        yield piece if is_plain else piece.float()
