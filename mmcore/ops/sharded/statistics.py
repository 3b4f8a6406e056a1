"""Statistics and gradients of softmax_similarity over ranks: how they merge from block to block."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.ops.bias_gradient import softmax_weights, sums_of_positives
from mmcore.ops.sharded.collectives import in_order
from mmcore.ops.sharded.slabs import Shards, Slab

FORWARD, BACKWARD = "softmax_similarity, forward", "softmax_similarity, backward"


class ShardedStatistics(NamedTuple):
    """float64, of this rank's rows and columns."""

    row_lse: Tensor  # (n,)
    col_lse: Tensor  # (m,), or empty without columns
    row_pos: Tensor  # (n,)
    col_pos: Tensor  # (m,), or empty


class ShardedWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    scale: bool
    bias: bool
    row_bias: bool
    col_bias: bool


class StateOfColumns(NamedTuple):
    """Statistics of the columns of all ranks, and their upstream gradients; empty without."""

    lse: Tensor
    pos: Tensor
    grad_lse: Tensor
    grad_pos: Tensor

    @staticmethod
    def of(
        statistics: ShardedStatistics, upstream: SoftmaxUpstream, shards: Shards, has_columns: bool
    ) -> StateOfColumns:
        own = (statistics.col_lse, statistics.col_pos, upstream.col_lse, upstream.col_pos)
        if not has_columns:
            return StateOfColumns(*own)
        every = shards.gathered(torch.stack(own, 1), BACKWARD)
        assert every is not None
        return StateOfColumns(*(part.contiguous() for part in every.unbind(1)))

    def statistics(self, own: ShardedStatistics, slab: Slab) -> SoftmaxStatistics:
        return self.statistics_at(own, slice(None), slab.columns)

    def upstream(self, own: SoftmaxUpstream, slab: Slab) -> SoftmaxUpstream:
        return self.upstream_at(own, slice(None), slab.columns)

    def statistics_at(
        self, own: ShardedStatistics, rows: slice, columns: Tensor | None
    ) -> SoftmaxStatistics:
        """Of some rows of this rank, and of some columns of all."""
        lse, pos = (_at(part, columns) for part in (self.lse, self.pos))
        kept = own.row_lse.new_empty(0, dtype=torch.float32)
        return SoftmaxStatistics(own.row_lse[rows], lse, own.row_pos[rows], pos, kept)

    def upstream_at(
        self, own: SoftmaxUpstream, rows: slice, columns: Tensor | None
    ) -> SoftmaxUpstream:
        lse, pos = (_at(part, columns) for part in (self.grad_lse, self.grad_pos))
        row_lse, row_pos = (part[rows].contiguous() for part in (own.row_lse, own.row_pos))
        return SoftmaxUpstream(row_lse, lse, row_pos, pos)

    def all_upstream(self, own: SoftmaxUpstream) -> SoftmaxUpstream:
        return SoftmaxUpstream(own.row_lse, self.grad_lse, own.row_pos, self.grad_pos)


def _at(part: Tensor, columns: Tensor | None) -> Tensor:
    return part if columns is None or not len(part) else part[columns]


class Implementation(Protocol):
    """A backend's file of softmax_similarity."""

    def forward(self, inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics: ...

    def backward(
        self, inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream,
        wanted: SoftmaxWanted, rounds: bool,
    ) -> Gradients: ...  # fmt: skip


class BiasGradients:
    """Gradients of scale and biases; those of columns are complete on their owner."""

    def __init__(self, x: Tensor, columns: int, wanted: SoftmaxWanted) -> None:
        self.wanted = wanted
        self.scale = x.new_zeros((), dtype=torch.float64)
        self.row_bias = self.scale.new_zeros(x.shape[0])
        self.columns = self.scale.new_zeros(columns if wanted.col_bias else 0)

    def add(self, gradients: Gradients, slab: Slab) -> None:
        """Those of a slab."""
        _, _, scale, row_bias, col_bias = gradients
        if self.wanted.scale and scale is not None:
            self.scale += scale
        if self.wanted.row_bias and row_bias is not None:
            self.row_bias += row_bias
        if self.wanted.col_bias and col_bias is not None:
            self.columns[slice(None) if slab.columns is None else slab.columns] = col_bias.double()

    def both(self, is_symmetric: bool, shards: Shards) -> tuple[Tensor | None, Tensor | None]:
        """Of rows and of columns; of rows alone where y is x."""
        rows = self.row_bias if self.wanted.row_bias else None
        if not self.wanted.col_bias:
            return rows, None
        columns = in_order(shards.to_owners(self.columns, BACKWARD))
        return (None if rows is None else rows + columns, None) if is_symmetric else (rows, columns)


def nothing(inputs: SimilarityInputs, count: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exps and positives of no entries."""
    lse = inputs.x.new_full((count,), -torch.inf, dtype=torch.float64)
    return lse, lse.clone() if inputs.positives == "log_sum_exp" else torch.zeros_like(lse)


def merged(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], positives: str
) -> tuple[Tensor, Tensor]:
    add = torch.logaddexp if positives == "log_sum_exp" else torch.add
    return torch.logaddexp(one[0], other[0]), add(one[1], other[1])


def bias_gradient_of_ranks(
    inputs: SimilarityInputs, own: ShardedStatistics, upstream: SoftmaxUpstream,
    every: SoftmaxUpstream,
) -> Tensor:  # fmt: skip
    """This rank's share, as ops/bias_gradient.py has it: of its rows, and of its columns."""
    sides = [(own.row_lse, upstream.row_lse), (own.row_pos, upstream.row_pos)]
    if inputs.has_columns:
        sides += [(own.col_lse, upstream.col_lse), (own.col_pos, upstream.col_pos)]
    is_joined = inputs.positives == "log_sum_exp"
    total = sum(softmax_weights(*side) for side in (sides if is_joined else sides[::2]))
    assert isinstance(total, Tensor)
    return total if is_joined else total + sums_of_positives(inputs, every)
