"""Columns of all ranks, a slab at a time: rows of y, on their way while others are computed with.

    bytes of a slab of S columns = 3·b·S·D    b bytes an element

for a slab that is computed with, the next one and the one before, and what the caller needs.

Gathered: a slab has as many rows of each rank, as long as that has any left; S is what the smallest
workspace of all ranks holds, LEAST_COLUMNS at least, and no more than lets most columns travel
while others are computed with. In a ring: a slab has all rows of one rank, and goes on to
the next rank, so that S does not grow with their number; what is found of its columns goes straight
to the rank that owns them. Both are all-gather and all-to-all: no backend needs point-to-point
calls.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import isqrt
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
    start_all_to_all,
)
from mmcore.ops.sharded.nodes import Leg, Nodes

# A smaller slab would spend more time on its way than in products.
LEAST_COLUMNS = 1024
# Nothing is computed while the first slab is on its way, and every slab costs launches: together
# they cost least with about √(columns / ONE_SLAB) slabs.
ONE_SLAB = 2**15


class Shards(NamedTuple):
    """Who holds which rows, as header.py's `agree` found it."""

    group: Group
    rows: list[int]  # of x, by rank
    columns: list[int]  # rows of y, by rank
    workspace: int
    is_ring: bool
    nodes: Nodes

    @staticmethod
    def of(agreed: Tensor, group: str) -> Shards:
        """`agreed` has the rows of x and of y, and header.py's last fields."""
        rows, columns, workspace, is_ring, machines = agreed.T.tolist()
        nodes = Nodes.of(machines)
        return Shards(group_of(group), rows, columns, min(workspace), bool(is_ring[0]), nodes)

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
    own: slice  # which rows of this rank's y the ranks have now
    legs: list[Leg]  # the way of a row for each column to the rank that owns it
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


def slabs(y: Tensor, shards: Shards, what: str, *, beside: int = 0) -> Iterator[Slab]:
    """All columns; the next slab is on its way while the caller works on one.

    `beside` is how many bytes the caller needs for each column of a slab.
    """
    return _ring(y, shards, what) if shards.is_ring else _gathered(y, shards, what, beside)


def _ring(y: Tensor, shards: Shards, what: str) -> Iterator[Slab]:
    """This rank's columns, then those of the rank before it, which come from there, and so on."""
    group, columns, rows = shards.group, shards.columns, y
    begins = offsets(columns)
    for hop in range(group.size):
        owner, before = (group.rank - hop) % group.size, (group.rank - hop - 1) % group.size
        following = None
        if hop < group.size - 1:
            given = one_of(columns[owner], group.rank + 1, group.size)
            taken = one_of(columns[before], group.rank - 1, group.size)
            following = start_all_to_all(rows, given, taken, group, what)
        numbers = torch.arange(begins[owner], begins[owner + 1], device=y.device)
        leg = Leg(
            one_of(columns[owner], owner, group.size),
            one_of(columns[group.rank], group.rank + hop, group.size),
        )
        yield Slab(rows, slice(0, columns[group.rank]), [leg], numbers)
        if following is not None:
            rows = following()


def one_of(count: int, rank: int, size: int) -> list[int]:
    """So many for one rank, and none for the others."""
    return [count if other == rank % size else 0 for other in range(size)]


def _gathered(y: Tensor, shards: Shards, what: str, beside: int) -> Iterator[Slab]:
    size = _rows_of_each(y, shards, beside)
    starts = range(0, max(shards.columns), size)
    following = _start(y, shards, 0, size, what)
    for start in starts:
        slab = _slab(following(), shards, start, size)
        if start + size < starts.stop:
            following = _start(y, shards, start + size, size, what)
        yield slab


def _rows_of_each(y: Tensor, shards: Shards, beside: int) -> int:
    """How many rows of each rank a slab has."""
    ranks, of_column = shards.group.size, 3 * y.element_size() * y.shape[1] + beside
    enough = isqrt(ranks * max(shards.columns) * ONE_SLAB)
    return max(LEAST_COLUMNS, min(shards.workspace // of_column, enough)) // ranks or 1


def _start(y: Tensor, shards: Shards, start: int, size: int, what: str) -> Wait:
    longest = min(size, max(shards.columns) - start)
    rows = y[start : start + longest]
    return start_all_gather(padded(rows, longest), shards.group, what)


def _slab(gathered: Tensor, shards: Shards, start: int, size: int) -> Slab:
    counts = [max(0, min(size, columns - start)) for columns in shards.columns]
    rank = shards.group.rank
    rows = joined(gathered, [slice(0, count) for count in counts])
    columns = None
    if counts != shards.columns:
        columns = _numbers(shards.columns, start, counts).to(rows.device)
    own = slice(start, start + counts[rank])
    return Slab(rows, own, shards.nodes.legs(rank, counts), columns)


def _numbers(columns: Sequence[int], start: int, counts: Sequence[int]) -> Tensor:
    begins = offsets(columns)
    return torch.cat(
        [
            torch.arange(begin + start, begin + start + count)
            for begin, count in zip(begins, counts, strict=False)
        ]
    )
