"""Rows of two sides that belong together, as arrays or as iterables of pieces, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcore.functional import arguments as check

Rows: TypeAlias = Any  # a tensor, a NumPy array or anything with __dlpack__
PIECE_BYTES = 2**24  # of the float64 copy of one piece, both sides together


def is_array(value: object) -> bool:
    """Whether `value` holds its rows itself."""
    return isinstance(value, (Tensor, np.ndarray)) or hasattr(value, "__dlpack__")


def _has_pieces(value: object) -> bool:
    is_text = isinstance(value, (str, bytes))
    return isinstance(value, Iterable) and not is_text and not is_array(value)


def as_array(name: str, value: Rows) -> Tensor | NDArray[Any]:
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


def as_tensor(rows: Tensor | NDArray[Any], dtype: torch.dtype | None = None) -> Tensor:
    """Some rows of an array; those of NumPy are copied, because torch knows no read-only memory."""
    if isinstance(rows, np.ndarray):
        rows = torch.from_numpy(np.array(rows, dtype=rows.dtype.newbyteorder("="), order="C"))
    return rows if dtype is None else rows.to(dtype)


def pairs(x: Rows | Iterable[Rows], y: Rows | Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of both sides in float64, of as many rows each."""
    if is_array(x) and is_array(y):
        yield from _checked_pieces("x", x, "y", y)
        return
    if not (_has_pieces(x) and _has_pieces(y)):
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        raise TypeError(
            f"x and y must be tensors or arrays, or both iterables of pieces, got {kinds}"
        )
    yield from _of_iterables(x, y)


def _of_iterables(x: Iterable[Rows], y: Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
    widths: list[int] = []
    missing, others = object(), iter(y)
    number = -1
    for number, left in enumerate(x):
        right = next(others, missing)
        if right is missing:
            raise ValueError(f"y must have as many pieces as x, got only {number}")
        names = (f"x[{number}]", f"y[{number}]")
        for piece in _checked_pieces(names[0], left, names[1], right):
            found = [side.shape[1] for side in piece]
            widths = widths or found
            for name, width, first in zip(names, found, widths, strict=True):
                if width != first:
                    raise ValueError(
                        f"{name} must have {first} columns as the pieces before it, got {width}"
                    )
            yield piece
    if next(others, missing) is not missing:
        raise ValueError(f"y must have as many pieces as x, which has {number + 1}; got more")


def _checked_pieces(x_name: str, x: Rows, y_name: str, y: Rows) -> Iterator[tuple[Tensor, Tensor]]:
    left, right = as_array(x_name, x), as_array(y_name, y)
    if left.shape[0] != right.shape[0]:
        raise ValueError(
            f"{y_name} must have {left.shape[0]} rows to match {x_name}, got {right.shape[0]}"
        )
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        check.check_device(y_name, right, left, x_name)
    rows = rows_at_a_time(left.shape[1] + right.shape[1])
    for start in range(0, left.shape[0], rows):
        piece = [as_tensor(side[start : start + rows], torch.float64) for side in (left, right)]
        for name, side in zip((x_name, y_name), piece, strict=True):
            _check_finite(name, side, start)
        yield piece[0], piece[1].to(piece[0].device)


def rows_at_a_time(width: int) -> int:
    """Rows of a piece, for so many columns."""
    return max(1, PIECE_BYTES // (8 * width))


def _check_finite(name: str, piece: Tensor, start: int) -> None:
    is_finite = piece.isfinite()
    if not bool(is_finite.all()):
        row, column = (~is_finite).nonzero()[0].tolist()
        found = piece[row, column].item()
        raise ValueError(
            f"{name} must be finite, got {found} in row {start + row}, column {column}"
        )
