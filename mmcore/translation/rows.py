"""Rows of two sides that belong together, as arrays or as iterables of pieces, some at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeAlias

from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.retrieval import arrays

Rows: TypeAlias = Any  # a tensor, a NumPy array or anything with __dlpack__
PIECE_BYTES = 2**24  # of the float64 copy of one piece, both sides together


def as_rows(name: str, value: object) -> Tensor:
    """A matrix of floating-point numbers, which may be a file that is mapped into memory."""
    rows = arrays.as_tensor(name, value)
    check.check_matrix(name, rows)
    return rows


def pairs(x: Rows | Iterable[Rows], y: Rows | Iterable[Rows]) -> Iterator[tuple[Tensor, Tensor]]:
    """Pieces of both sides in float64, of as many rows each."""
    if arrays.is_array(x) and arrays.is_array(y):
        yield from _checked_pieces("x", x, "y", y)
    elif _has_pieces(x) and _has_pieces(y):
        yield from _of_iterables(x, y)
    else:
        kinds = f"{type(x).__name__} and {type(y).__name__}"
        raise TypeError(
            f"x and y must be tensors or arrays, or both iterables of pieces, got {kinds}"
        )


def _has_pieces(value: object) -> bool:
    is_text = isinstance(value, (str, bytes))
    return isinstance(value, Iterable) and not is_text and not arrays.is_array(value)


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
    left, right = as_rows(x_name, x), as_rows(y_name, y)
    check.check_same_rows(y_name, right, left, x_name)
    check.check_device(y_name, right, left, x_name)
    rows = rows_at_a_time(left.shape[1] + right.shape[1])
    for start in range(0, left.shape[0], rows):
        # Contiguous, so that the strides of an array do not change the bits of the sums.
        one, other = (side[start : start + rows].double().contiguous() for side in (left, right))
        for name, side in ((x_name, one), (y_name, other)):
            _check_finite(name, side, start)
        yield one, other


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
