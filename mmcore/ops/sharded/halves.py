"""A matrix over ranks whose y is x: half of the blocks, each of them computed once.

    s_ij = s_ji, so that the columns of block (r, q) are the rows of block (q, r)

Rank r computes its own block by half, as one process does, and then its blocks with the ranks
r − 1, r − 2, … as far as half of the way round. What it finds of their rows goes to them. With an
even number of ranks, two that face each other share their block: the lower rank takes the first
half of its own rows, the higher one the rest. A rank's rows go round as in a ring (slabs.py).

Positives have to be mutual: labels name them, or targets that name each other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.ops.sharded.collectives import offsets, start_all_to_all
from mmcore.ops.sharded.matrix import Columns
from mmcore.ops.sharded.nodes import Leg
from mmcore.ops.sharded.slabs import Shards, one_of


class Pair(NamedTuple):
    """Some rows of this rank against some of another."""

    rows: slice  # of this rank
    others: Tensor | None  # rows of the other rank; None: of this one, all of them
    numbers: Tensor  # of those among the rows of all ranks
    back: slice  # which of this rank's rows come back, from whoever had them
    owner: int
    holder: int  # who had them

    def leg(self, size: int) -> Leg:
        """Of a row for each of the other rank's to that, and of this rank's from its holder."""
        return Leg(
            one_of(len(self.numbers), self.owner, size),
            one_of(self.back.stop - self.back.start, self.holder, size),
        )


def pairs(x: Tensor, shards: Shards, what: str) -> Iterator[Pair]:
    """Every pair of rows of which one is this rank's, once among the ranks."""
    (rank, size), counts, rows = shards.group[2:], shards.columns, x
    begins = offsets(counts)
    for hop in range(size // 2 + 1):
        owner, before = (rank - hop) % size, (rank - hop - 1) % size
        following = None
        if hop < size // 2:
            given, taken = (
                one_of(counts[who], to % size, size)
                for who, to in ((owner, rank + 1), (before, rank - 1))
            )
            following = start_all_to_all(rows, given, taken, shards.group, what)
        own, others = _split(rank, owner, hop, counts)
        holder = (rank + hop) % size
        numbers = torch.arange(others.start, others.stop, device=x.device) + begins[owner]
        _, back = _split(holder, rank, hop, counts)
        yield Pair(own, rows[others] if hop else None, numbers, back, owner, holder)
        if following is not None:
            rows = following()


def _split(rank: int, owner: int, hop: int, counts: list[int]) -> tuple[slice, slice]:
    """Which rows of both this rank multiplies: all, or a half where the other has this pair too."""
    half = counts[min(rank, owner)] // 2
    rows, others = slice(0, counts[rank]), slice(0, counts[owner])
    if 2 * hop != len(counts):
        return rows, others
    return (slice(0, half), others) if rank < owner else (rows, slice(half, counts[owner]))


def block_of(inputs: SimilarityInputs, vectors: Columns, pair: Pair) -> SimilarityInputs:
    """This rank's own rows by half, or its rows and the other's columns."""
    if pair.others is None:
        return inputs._replace(
            y=None, col_bias=None, col_label=None, col_group=None, has_columns=False
        )

    def at(vector: Tensor | None, place: slice | Tensor) -> Tensor | None:
        return None if vector is None else vector[place]

    return inputs._replace(
        x=inputs.x[pair.rows], y=pair.others, row_bias=at(inputs.row_bias, pair.rows),
        row_label=at(inputs.row_label, pair.rows), row_group=at(inputs.row_group, pair.rows),
        col_bias=at(vectors.col_bias, pair.numbers), col_label=at(vectors.col_label, pair.numbers),
        col_group=at(vectors.col_group, pair.numbers), has_columns=True,
    )  # fmt: skip


def by_labels(inputs: SimilarityInputs, shards: Shards, what: str) -> SimilarityInputs | None:
    """The same pairs by labels, or None where the targets of all ranks are no such pairs.

    Rows that name each other, or themselves, get a label of their own.
    """
    if inputs.target is None:
        return inputs
    own = [inputs.target.long()]
    if inputs.row_group is not None:
        own.append(inputs.row_group.long())
    every = shards.gathered(torch.stack(own, 1), what)
    assert every is not None
    target, group = every[:, 0], every[:, -1] if len(own) > 1 else torch.full_like(every[:, 0], -1)
    numbers, at = torch.arange(len(target), device=target.device), target.clamp(min=0)
    # A label makes no positive of two rows of a group, but one of a row with itself.
    is_told = (target[at] == numbers) & ((group != group[at]) | (group == -1))
    is_told &= (at == numbers) | (group != -1)
    if not bool((is_told | (target < 0)).all()):
        return None
    label = torch.where(target < 0, -1, torch.minimum(target, numbers))
    first = offsets(shards.columns)[shards.group.rank]
    label = label[first : first + inputs.x.shape[0]].contiguous()
    return inputs._replace(target=None, row_label=label, col_label=label)
