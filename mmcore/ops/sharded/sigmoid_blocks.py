"""Blocks of sigmoid_similarity over ranks: rows of this rank against columns that come in turn."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from torch import Tensor

from mmcore.backends.inputs import Gradients, SigmoidWanted, SimilarityInputs
from mmcore.ops.sharded import halves
from mmcore.ops.sharded.matrix import Columns, FeatureGradients, Place, ShardedInputs
from mmcore.ops.sharded.nodes import Leg
from mmcore.ops.sharded.slabs import Shards, one_of, slabs


class Block(NamedTuple):
    """A part of the matrix."""

    inputs: SimilarityInputs
    rows: slice  # which of this rank's they are
    place: Place  # of the columns
    mirror: int | None = None  # whose rows the columns are, where these have this block too
    answer: Leg | None = None  # the way of a number to that rank, and of one to this

    @property
    def is_empty(self) -> bool:
        return 0 in (self.inputs.x.shape[0], self.place.size)


def blocks(given: ShardedInputs, shards: Shards, what: str, beside: int) -> Iterator[Block]:
    """All of this rank's part, or where y is x the half of it that stands for the other one."""
    inputs = given.matrix()
    half = halves.by_labels(inputs, shards, what) if given.y is None else None
    vectors, columns = Columns.of(half or inputs, shards, what), sum(shards.columns)
    if half is None:
        for slab in slabs(inputs.keys, shards, what, beside=beside):
            place = Place(len(slab.rows), slab.own, slab.legs)
            yield Block(vectors.at(slab, inputs, columns), slice(None), place)
        return
    size = shards.group.size
    for pair in halves.pairs(half.x, shards, what):
        block = halves.block_of(half, vectors, pair)
        if pair.others is None:
            yield Block(block, pair.rows, Place(len(pair.numbers), pair.back, []))
            continue
        place = Place(len(pair.numbers), pair.back, [pair.leg(size)])
        answer = Leg(one_of(1, pair.owner, size), one_of(1, pair.holder, size))
        yield Block(block, pair.rows, place, pair.owner, answer)


class ShardedGradients:
    """Gradients of this rank's rows, and its shares of those of scale and bias."""

    def __init__(
        self, given: ShardedInputs, shards: Shards, what: str, wanted: SigmoidWanted
    ) -> None:
        keys = given.x if given.y is None else given.y
        self.is_symmetric = given.y is None
        self.features = FeatureGradients(given.x, keys, wanted.x, wanted.y, shards, what)
        self.wanted = wanted._replace(y=self.features.has_y)  # of a block
        self.scale, self.bias = (given.x.new_zeros(()).double() for _ in range(2))

    def add(self, gradients: Gradients, block: Block) -> None:
        """Those of a block; None where this rank has none."""
        x, y, scale, bias = (None if z is None or not z.numel() else z for z in gradients)
        self.features.add_some(x, y, block.rows, block.place)
        for total, gradient in ((self.scale, scale), (self.bias, bias)):
            if gradient is not None:
                total += gradient

    def all(self) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
        """Of x, y, scale and bias, once those of other ranks have come."""
        return *self.features.both(self.is_symmetric), self.scale, self.bias
