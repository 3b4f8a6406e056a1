"""softmax_similarity of a matrix whose rows and columns several ranks hold.

    s_ij, row_lse, col_lse, row_pos, col_pos: ops/softmax_similarity.py, i and j over all ranks

A rank returns the statistics of its own rows and of its own columns. `target` numbers the columns
of all ranks; labels and groups compare by value across ranks. The gradients are those of the sum
over ranks of what each back-propagates: a rank returns them for its own rows of x and y, and its
share of those of scale and bias, which add up over ranks.

A rank computes its rows against the columns of all ranks, slab after slab, by the kernels of one
process. Log-sum-exps of its rows merge from slab to slab. Those of columns go to the ranks that own
the columns and merge there, in rank order. The backward gathers the columns a second time, with
their log-sum-exps and upstream gradients, and sends the gradients of columns to their owners, which
add them in rank order: float32 sums (float64 for float64), the same bits each time.

Saved for the backward: the inputs and the statistics of this rank alone. x may have 0 rows, and y.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.ops.bias_gradient import softmax_weights, sums_of_positives
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import with_operands
from mmcore.ops.sharded import header
from mmcore.ops.sharded.collectives import in_order
from mmcore.ops.sharded.matrix import Columns, FeatureGradients, ShardedInputs
from mmcore.ops.sharded.slabs import Shards, Slab, slabs

NAME = "softmax_similarity"
FORWARD, BACKWARD = f"{NAME}, forward", f"{NAME}, backward"


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


class Run:
    """The two halves of the op on one backend."""

    def __init__(self, backend: str) -> None:
        self.implementation = backends.implementation(backend, NAME)

    def forward(self, given: ShardedInputs) -> ShardedStatistics:
        inputs, shards = given.matrix(), Shards.of(given.agreed, given.group)
        assert inputs.y is not None
        vectors, columns = Columns.of(inputs, shards, FORWARD), sum(shards.columns)
        rows, merged = _nothing(inputs, inputs.x.shape[0]), None
        if inputs.has_columns:
            merged = torch.stack(_nothing(inputs, columns), 1)
        for slab in slabs(inputs.y, shards, FORWARD):
            block = vectors.at(slab, inputs, columns)
            if 0 in (inputs.x.shape[0], len(slab.rows)):
                continue
            found = self.implementation.forward(block, 0)
            rows = _merged(rows, (found.row_lse, found.row_pos), inputs.positives)
            if merged is not None:
                where = slice(None) if slab.columns is None else slab.columns
                merged[where] = torch.stack((found.col_lse, found.col_pos), 1)
        if merged is None:
            nothing = inputs.x.new_empty(0, dtype=torch.float64)
            return ShardedStatistics(rows[0], nothing, rows[1], torch.empty_like(nothing))
        found_columns = _nothing(inputs, shards.own_columns)
        for part in shards.to_owners(merged, FORWARD):
            lse, pos = part.unbind(1)
            found_columns = _merged(found_columns, (lse, pos), inputs.positives)
        return ShardedStatistics(rows[0], found_columns[0], rows[1], found_columns[1])

    def backward(
        self, given: ShardedInputs, statistics: ShardedStatistics, upstream: SoftmaxUpstream,
        wanted: ShardedWanted, rounds: bool,
    ) -> Gradients:  # fmt: skip
        inputs, shards = given.matrix(), Shards.of(given.agreed, given.group)
        assert inputs.y is not None
        header.same_step(inputs.x, BACKWARD, given.group)
        vectors, columns = Columns.of(inputs, shards, BACKWARD), sum(shards.columns)
        state = _StateOfColumns.of(statistics, upstream, shards, inputs.has_columns)
        is_same = inputs.y is inputs.x
        of_block = SoftmaxWanted(
            wanted.x, wanted.y or (wanted.x and is_same), wanted.scale, wanted.row_bias,
            wanted.col_bias or (wanted.row_bias and is_same),
        )  # fmt: skip
        features = FeatureGradients(inputs.x, inputs.y, of_block.x, of_block.y)
        biases = _BiasGradients(inputs.x, columns, of_block)
        for slab in slabs(inputs.y, shards, BACKWARD):
            gradients: Gradients = (None,) * 5
            if 0 not in (inputs.x.shape[0], len(slab.rows)):
                gradients = self.implementation.backward(
                    vectors.at(slab, inputs, columns), state.statistics(statistics, slab),
                    state.upstream(upstream, slab), of_block, False,
                )  # fmt: skip
            features.add(gradients[0], gradients[1], slab, shards, BACKWARD)
            biases.add(gradients, slab)
        bias = None
        if wanted.bias:
            whole = inputs._replace(**vectors._asdict())
            bias = _bias_gradient(whole, statistics, upstream, state.all_upstream(upstream))
        x, y = features.both(given.y is None)
        row_bias, col_bias = biases.both(given.y is None, shards)
        return x, y, biases.scale, bias, row_bias, col_bias


class _StateOfColumns(NamedTuple):
    """Statistics of the columns of all ranks, and their upstream gradients; empty without."""

    lse: Tensor
    pos: Tensor
    grad_lse: Tensor
    grad_pos: Tensor

    @staticmethod
    def of(
        statistics: ShardedStatistics, upstream: SoftmaxUpstream, shards: Shards, has_columns: bool
    ) -> _StateOfColumns:
        own = (statistics.col_lse, statistics.col_pos, upstream.col_lse, upstream.col_pos)
        if not has_columns:
            return _StateOfColumns(*own)
        every = shards.gathered(torch.stack(own, 1), BACKWARD)
        assert every is not None
        return _StateOfColumns(*(part.contiguous() for part in every.unbind(1)))

    def statistics(self, own: ShardedStatistics, slab: Slab) -> SoftmaxStatistics:
        lse, pos = (self._at(part, slab) for part in (self.lse, self.pos))
        kept = own.row_lse.new_empty(0, dtype=torch.float32)
        return SoftmaxStatistics(own.row_lse, lse, own.row_pos, pos, kept)

    def upstream(self, own: SoftmaxUpstream, slab: Slab) -> SoftmaxUpstream:
        lse, pos = (self._at(part, slab) for part in (self.grad_lse, self.grad_pos))
        return SoftmaxUpstream(own.row_lse.contiguous(), lse, own.row_pos.contiguous(), pos)

    def all_upstream(self, own: SoftmaxUpstream) -> SoftmaxUpstream:
        return SoftmaxUpstream(own.row_lse, self.grad_lse, own.row_pos, self.grad_pos)

    @staticmethod
    def _at(part: Tensor, slab: Slab) -> Tensor:
        return part if slab.columns is None or not len(part) else part[slab.columns]


class _BiasGradients:
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


def _nothing(inputs: SimilarityInputs, count: int) -> tuple[Tensor, Tensor]:
    """Log-sum-exps and positives of no entries."""
    lse = inputs.x.new_full((count,), -torch.inf, dtype=torch.float64)
    return lse, lse.clone() if inputs.positives == "log_sum_exp" else torch.zeros_like(lse)


def _merged(
    one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor], positives: str
) -> tuple[Tensor, Tensor]:
    add = torch.logaddexp if positives == "log_sum_exp" else torch.add
    return torch.logaddexp(one[0], other[0]), add(one[1], other[1])


def _bias_gradient(
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


def fake(inputs: ShardedInputs) -> ShardedStatistics:
    x, keys = inputs.x, inputs.x if inputs.y is None else inputs.y
    columns = keys.shape[0] if inputs.has_columns else 0
    sizes = (x.shape[0], columns, x.shape[0], columns)
    return ShardedStatistics(*(x.new_empty(size, dtype=torch.float64) for size in sizes))


def products(inputs: ShardedInputs, wanted: ShardedWanted) -> list[Product]:
    """The matrix of the logits."""
    return [inputs.product(wanted.x, wanted.y)]


family = Family(
    "sharded_softmax_similarity", inputs=ShardedInputs, results=ShardedStatistics,
    upstream=SoftmaxUpstream, wanted=ShardedWanted, fake=fake, products=products, serves=Run,
)  # fmt: skip


def call(
    inputs: SimilarityInputs, agreed: Tensor, group: str, *, backend: str | None
) -> ShardedStatistics:
    """The statistics, differentiable; the inputs are checked, and agreed on."""
    inputs = with_operands(inputs)
    return family(
        ShardedInputs(*inputs, agreed=agreed, group=group), backend=backends.selected(backend)
    )
