"""softmax_similarity over ranks where y is x and only rows are wanted: half of the blocks.

    s_ij = s_ji, so that the columns' statistics of block (r, q) are the rows' of block (q, r)

Rank r computes its own block by half, as one process does, and then its blocks with the ranks
r − 1, r − 2, … as far as half of the way round. What it finds of their rows goes to them. With an
even number of ranks, two that face each other share their block: the lower rank takes the first
half of its own rows, the higher one the rest. Positives have to be mutual: labels name them.

A rank's rows go round as in a ring (slabs.py); what is found of them comes back in the order of the
hops, while the next are computed with. Statistics, upstream gradients and merging:
sharded/softmax_similarity.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
    arithmetic_dtype,
)
from mmcore.ops.sharded.collectives import offsets, start_all_to_all
from mmcore.ops.sharded.matrix import Columns
from mmcore.ops.sharded.nodes import Leg
from mmcore.ops.sharded.returns import Returns, adding
from mmcore.ops.sharded.slabs import Shards, one_of
from mmcore.ops.sharded.statistics import (
    BACKWARD,
    FORWARD,
    Implementation,
    ShardedStatistics,
    StateOfColumns,
    merged,
    nothing,
)


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


def forward(
    implementation: Implementation, inputs: SimilarityInputs, shards: Shards
) -> tuple[Tensor, Tensor]:
    """row_lse and row_pos."""
    vectors, group = Columns.of(inputs, shards, FORWARD), shards.group
    rows = nothing(inputs, inputs.x.shape[0])

    def merge(place: slice, part: Tensor) -> None:
        lse, pos = part.unbind(1)
        found = merged((rows[0][place], rows[1][place]), (lse, pos), inputs.positives)
        for total, part in zip(rows, found, strict=True):
            total[place] = part

    returns = Returns(merge, group, FORWARD)
    for pair in pairs(inputs.x, shards, FORWARD):
        block = _block(inputs, vectors, pair)
        returned = torch.stack(nothing(inputs, len(pair.numbers)), 1)
        if 0 not in (block.x.shape[0], len(pair.numbers)):
            found = implementation.forward(block, 0)
            merge(pair.rows, torch.stack((found.row_lse, found.row_pos), 1))
            if block.has_columns:
                returned = torch.stack((found.col_lse, found.col_pos), 1)
        if pair.others is not None:
            returns.send(returned, pair.back, [pair.leg(group.size)])
    returns.finish()
    return rows


def backward(
    implementation: Implementation, inputs: SimilarityInputs, shards: Shards,
    statistics: ShardedStatistics, upstream: SoftmaxUpstream, wanted: SoftmaxWanted,
) -> Gradients:  # fmt: skip
    """x, y, scale, row_bias, col_bias, of which y and col_bias are None."""
    vectors = Columns.of(inputs, shards, BACKWARD)
    rows = statistics._replace(col_lse=statistics.row_lse, col_pos=statistics.row_pos)
    above = upstream._replace(col_lse=upstream.row_lse, col_pos=upstream.row_pos)
    state = StateOfColumns.of(rows, above, shards, True)
    x = inputs.x.new_zeros(inputs.x.shape, dtype=arithmetic_dtype(inputs.x.dtype))
    row_bias, scale = torch.zeros_like(statistics.row_lse), x.new_zeros((), dtype=torch.float64)
    returns, returns_of_bias = (
        Returns(adding(total), shards.group, BACKWARD) for total in (x, row_bias)
    )
    for pair in pairs(inputs.x, shards, BACKWARD):
        block = _block(inputs, vectors, pair)
        returned = x.new_zeros((len(pair.numbers), x.shape[1]))
        returned_bias = row_bias.new_zeros(len(pair.numbers))
        if 0 not in (block.x.shape[0], len(pair.numbers)):
            at = pair.numbers if block.has_columns else pair.numbers[:0]
            grad_x, grad_y, grad_scale, grad_rows, grad_columns = implementation.backward(
                block, state.statistics_at(statistics, pair.rows, at),
                state.upstream_at(upstream, pair.rows, at), _wanted(wanted, pair), False,
            )  # fmt: skip
            for total, gradient in ((x, grad_x), (row_bias, grad_rows)):
                if gradient is not None and gradient.numel():
                    total[pair.rows] += gradient
            scale += 0 if grad_scale is None or not grad_scale.numel() else grad_scale
            if grad_y is not None and grad_y.numel():
                returned = grad_y.to(x.dtype)
            if grad_columns is not None and grad_columns.numel():
                returned_bias = grad_columns.double()
        if pair.others is not None:
            legs = [pair.leg(shards.group.size)]
            returns.send(returned, pair.back, legs)
            if wanted.row_bias:
                returns_of_bias.send(returned_bias, pair.back, legs)
    returns.finish()
    returns_of_bias.finish()
    return x, None, scale, row_bias if wanted.row_bias else None, None


def _wanted(wanted: SoftmaxWanted, pair: Pair) -> SoftmaxWanted:
    return wanted._replace(y=False, col_bias=False) if pair.others is None else wanted


def _block(inputs: SimilarityInputs, vectors: Columns, pair: Pair) -> SimilarityInputs:
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
