"""Columns of all ranks, a slab at a time: rows of y of every rank, gathered while others compute.

    bytes of a slab of S columns = (2·b + 8)·S·D    b bytes an element

for two slabs in flight and float32 gradients on their way; S is what the smallest workspace of all
ranks holds. A slab has as many rows of each rank, as long as that has any left.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.ops.sharded.collectives import (
    Group,
    Wait,
    gather_uneven,
    group_of,
    joined,
    offsets,
    padded,
    parts_of_owner,
    start_all_gather,
)


class Shards(NamedTuple):
    """Who holds which rows, as header.py's `agree` found it."""

    group: Group
    rows: list[int]  # of x, by rank
    columns: list[int]  # rows of y, by rank
    workspace: int

    @staticmethod
    def of(agreed: Tensor, group: str) -> Shards:
        """`agreed` has the rows of x and of y, and the workspace."""
        rows, columns, workspace = agreed.T.tolist()
        return Shards(group_of(group), rows, columns, min(workspace))

    @property
    def own_columns(self) -> int:
        return self.columns[self.group.rank]

    def gathered(self, values: Tensor | None, what: str) -> Tensor | None:
        """A vector, or a few, of the columns of all ranks."""
        return None if values is None else gather_uneven(values, self.columns, self.group, what)

    def to_owners(self, values: Tensor, what: str) -> tuple[Tensor, ...]:
        """Of a value for each column of all ranks, those of this one's, from each rank."""
        return parts_of_owner(values, self.columns, self.group, what)


class Slab(NamedTuple):
    """Some columns of every rank."""

    rows: Tensor  # (S, D) of y
    own: slice  # which rows of this rank's y are among them
    counts: list[int]  # how many are of each rank
    columns: Tensor | None  # (S,) their numbers among all columns; None: all of them in order

    def of(self, values: Tensor | None) -> Tensor | None:
        """A vector of all columns, at those of the slab."""
        return values if values is None or self.columns is None else values[self.columns]

    def target(self, target: Tensor | None, columns: int) -> Tensor | None:
        """Targets among the slab's columns; −1 where they are elsewhere."""
        if target is None or self.columns is None:
            return target
        place = target.new_full((columns,), -1)
        place[self.columns] = torch.arange(len(self.columns), device=target.device)
        return torch.where(target < 0, -1, place[target.clamp(min=0)])


def slabs(y: Tensor, shards: Shards, what: str) -> Iterator[Slab]:
    """All columns; the next slab is on its way while the caller works on one."""
    size = _rows_of_each(y, shards)
    starts = range(0, max(shards.columns), size)
    following = _start(y, shards, 0, size, what)
    for start in starts:
        gathered = following()
        if start + size < starts.stop:
            following = _start(y, shards, start + size, size, what)
        yield _slab(gathered, shards, start, size)


def _rows_of_each(y: Tensor, shards: Shards) -> int:
    bytes_of_each = (2 * y.element_size() + 8) * y.shape[1] * shards.group.size
    return max(1, shards.workspace // bytes_of_each)


def _start(y: Tensor, shards: Shards, start: int, size: int, what: str) -> Wait:
    longest = min(size, max(shards.columns) - start)
    rows = y[start : start + longest]
    return start_all_gather(padded(rows, longest), shards.group, what)


def _slab(gathered: Tensor, shards: Shards, start: int, size: int) -> Slab:
    counts = [max(0, min(size, columns - start)) for columns in shards.columns]
    rows = joined(gathered, [slice(0, count) for count in counts])
    first, count = start, counts[shards.group.rank]
    columns = None
    if counts != shards.columns:
        columns = _numbers(shards.columns, start, counts).to(rows.device)
    return Slab(rows, slice(first, first + count), counts, columns)


def _numbers(columns: Sequence[int], start: int, counts: Sequence[int]) -> Tensor:
    begins = offsets(columns)
    return torch.cat(
        [
            torch.arange(begin + start, begin + start + count)
            for begin, count in zip(begins, counts, strict=False)
        ]
    )
