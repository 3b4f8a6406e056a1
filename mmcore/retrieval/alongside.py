"""The numbers beside the rows of a gallery: a bias and a group for each, whole or by chunks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.retrieval.arrays import as_tensor, is_array


class Vector:
    """One number for each row: an array, or an iterable with an array for each chunk."""

    def __init__(
        self, name: str, value: object, rows: int | None, convert: Callable[[str, Tensor], Tensor]
    ) -> None:
        self.name, self._convert = name, convert
        self._whole: Tensor | None = None
        self._parts: Iterator[object] | None = None
        if is_array(value):
            self._whole = _vector(name, value, rows, "the rows of gallery", convert)
        elif isinstance(value, Iterable):
            self._parts = iter(value)
        else:
            self._whole = as_tensor(name, value)  # raises
        self._first = 0

    def begin_chunk(self, chunk: str, rows: int) -> None:
        """Reads the part of the next chunk, where parts are given."""
        if self._parts is None:
            return
        part = next(self._parts, None)
        if part is None:
            raise ValueError(f"{self.name} must have a part for each chunk, got none for {chunk}")
        self._whole = _vector(self.name, part, rows, chunk.rstrip(","), self._convert)
        self._first = 0

    def take(self, rows: int) -> Tensor:
        """The numbers of the next rows."""
        if self._whole is None:  # parts beside an array, which is one chunk
            raise ValueError(
                f"{self.name} must be an array for a gallery that is one, got an iterable"
            )
        found = self._whole[self._first : self._first + rows]
        self._first += rows
        if found.shape[0] < rows:
            raise ValueError(
                f"{self.name} must have a number for each row of gallery, got {len(self._whole)} "
                f"for at least {self._first} rows"
            )
        return found

    def check_end(self) -> None:
        """The gallery has ended: nothing may be left."""
        if self._parts is not None:
            if next(self._parts, None) is not None:
                raise ValueError(f"{self.name} must have a part for each chunk, got more")
        elif self._whole is not None and len(self._whole) != self._first:
            raise ValueError(
                f"{self.name} must have shape ({self._first},) to match the rows of gallery, got "
                f"{tuple(self._whole.shape)}"
            )


class Alongside:
    """The bias and the group of each row, on the device of the queries, as rows are read."""

    def __init__(self, bias: object, group: object, rows: int | None, device: torch.device) -> None:
        self._vectors = [
            None if bias is None else Vector("gallery_bias", bias, rows, as_bias),
            None if group is None else Vector("gallery_group", group, rows, as_ids),
        ]
        self._device = device

    @property
    def has_groups(self) -> bool:
        """Whether rows have groups."""
        return self._vectors[1] is not None

    def begin_chunk(self, chunk: str, rows: int) -> None:
        """The next rows are those of a chunk that was iterated."""
        for vector in self._vectors:
            if vector is not None:
                vector.begin_chunk(chunk, rows)

    def take(self, rows: int) -> tuple[Tensor | None, Tensor | None]:
        """The bias and the group of the next rows."""
        bias, group = (
            None if vector is None else vector.take(rows).to(self._device)
            for vector in self._vectors
        )
        return bias, group

    def check_end(self) -> None:
        """The gallery has ended: nothing may be left."""
        for vector in self._vectors:
            if vector is not None:
                vector.check_end()


def ids_of_queries(value: object, queries: Tensor) -> Tensor | None:
    """`query_group`, on the device of the queries."""
    if value is None:
        return None
    ids = _vector("query_group", value, queries.shape[0], "the rows of queries", as_ids)
    return ids.to(queries.device)


def _vector(
    name: str, value: object, rows: int | None, of: str, convert: Callable[[str, Tensor], Tensor]
) -> Tensor:
    found = convert(name, as_tensor(name, value))
    if found.ndim != 1 or (rows is not None and found.shape[0] != rows):
        expected = "1 dimension" if rows is None else f"shape ({rows},) to match {of}"
        raise ValueError(f"{name} must have {expected}, got {tuple(found.shape)}")
    return found


def as_bias(name: str, value: Tensor) -> Tensor:
    check.check_tensor(name, value)
    return value.double()


def as_ids(name: str, value: Tensor) -> Tensor:
    return check.as_integers(name, value)
