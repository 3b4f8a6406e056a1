"""Features and labels, as tensors or as arrays of NumPy, some rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcore.functional import arguments as check

Array: TypeAlias = Tensor | NDArray[Any]
PIECE_BYTES = 2**24  # of what is copied or computed at a time


def as_matrix(name: str, value: object) -> Array:
    """A matrix of floating-point numbers. NumPy's stay where they are, which may be a file."""
    if not isinstance(value, (Tensor, np.ndarray)) and hasattr(value, "__dlpack__"):
        value = torch.utils.dlpack.from_dlpack(value)
    if not isinstance(value, np.ndarray):
        check.check_matrix(name, value)
        assert isinstance(value, Tensor)
        return value.detach()
    if value.dtype.newbyteorder("=") not in (np.float16, np.float32, np.float64):
        raise TypeError(f"{name} must be of dtype float16, float32 or float64, got {value.dtype}")
    if value.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got {value.ndim}")
    if value.shape[1] == 0:
        raise ValueError(f"{name} must have at least 1 column, got shape {value.shape}")
    return value


def as_labels(name: str, value: object, rows: int, of: str) -> Tensor:
    """A class number, at least 0, for each row of `of`; int64."""
    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "iu":
            raise TypeError(f"{name} must be of an integer dtype, got {value.dtype}")
        value = torch.from_numpy(value.astype(np.int64))
    labels = check.as_integers(name, value)
    if labels.shape != (rows,):
        raise ValueError(
            f"{name} must have shape ({rows},) to match the rows of {of}, got {tuple(labels.shape)}"
        )
    if bool((labels < 0).any()):
        raise ValueError(f"{name} must be at least 0, got {labels.min().item()}")
    return labels


def pieces(features: Array, width: int | None = None) -> Iterator[Tensor]:
    """The rows in float32, or in float64 where they are; whole where nothing has to be copied.

    With `width`, the numbers that each row makes, always in pieces. Of no rows, one piece of none.
    """
    is_plain = isinstance(features, Tensor) and features.dtype in (torch.float32, torch.float64)
    rows = max(1, PIECE_BYTES // (8 * (width or features.shape[1])))
    if is_plain and width is None:
        rows = max(1, features.shape[0])
    for start in range(0, max(1, features.shape[0]), rows):
        piece = features[start : start + rows]
        if not isinstance(piece, Tensor):  # torch knows no read-only memory
            native = piece.dtype.newbyteorder("=")
            piece = torch.from_numpy(np.array(piece, dtype=native, order="C"))
        yield piece if piece.dtype == torch.float64 else piece.float()


def as_given(result: Tensor, features: Array) -> Array:
    """As an array of NumPy where the features are one."""
    return result if isinstance(features, Tensor) else result.numpy()
