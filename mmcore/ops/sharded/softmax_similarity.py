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

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import with_operands
from mmcore.ops.sharded import halves, header, mirrored
from mmcore.ops.sharded.matrix import Columns, FeatureGradients, ShardedInputs
from mmcore.ops.sharded.slabs import Shards, slabs
from mmcore.ops.sharded.statistics import (
    BACKWARD,
    FORWARD,
    BiasGradients,
    ShardedStatistics,
    ShardedWanted,
    StateOfColumns,
    bias_gradient_of_ranks,
    merged,
    nothing,
)

NAME = "softmax_similarity"


class Run:
    """The two halves of the op on one backend."""

    def __init__(self, backend: str) -> None:
        self.implementation = backends.implementation(backend, NAME)

    def forward(self, given: ShardedInputs) -> ShardedStatistics:
        inputs, shards = given.matrix(), Shards.of(given.agreed, given.group)
        assert inputs.y is not None
        half = _half(given, inputs, shards, FORWARD)
        if half is not None:
            row_lse, row_pos = mirrored.forward(self.implementation, half, shards)
            none = row_lse.new_empty(0)
            return ShardedStatistics(row_lse, none, row_pos, none.clone())
        vectors, columns = Columns.of(inputs, shards, FORWARD), sum(shards.columns)
        rows, of_columns = nothing(inputs, inputs.x.shape[0]), None
        if inputs.has_columns:
            of_columns = torch.stack(nothing(inputs, columns), 1)
        for slab in slabs(inputs.y, shards, FORWARD):
            block = vectors.at(slab, inputs, columns)
            if 0 in (inputs.x.shape[0], len(slab.rows)):
                continue
            found = self.implementation.forward(block, 0)
            rows = merged(rows, (found.row_lse, found.row_pos), inputs.positives)
            if of_columns is not None:
                where = slice(None) if slab.columns is None else slab.columns
                of_columns[where] = torch.stack((found.col_lse, found.col_pos), 1)
        if of_columns is None:
            none = inputs.x.new_empty(0, dtype=torch.float64)
            return ShardedStatistics(rows[0], none, rows[1], torch.empty_like(none))
        found_columns = nothing(inputs, shards.own_columns)
        for part in shards.to_owners(of_columns, FORWARD):
            lse, pos = part.unbind(1)
            found_columns = merged(found_columns, (lse, pos), inputs.positives)
        return ShardedStatistics(rows[0], found_columns[0], rows[1], found_columns[1])

    def backward(
        self, given: ShardedInputs, statistics: ShardedStatistics, upstream: SoftmaxUpstream,
        wanted: ShardedWanted, rounds: bool,
    ) -> Gradients:  # fmt: skip
        inputs, shards = given.matrix(), Shards.of(given.agreed, given.group)
        assert inputs.y is not None
        header.same_step(inputs.x, BACKWARD, given.group)
        half = _half(given, inputs, shards, BACKWARD)
        if half is not None:
            return self._half_backward(half, shards, statistics, upstream, wanted)
        vectors, columns = Columns.of(inputs, shards, BACKWARD), sum(shards.columns)
        state = StateOfColumns.of(statistics, upstream, shards, inputs.has_columns)
        is_same = inputs.y is inputs.x
        of_block = SoftmaxWanted(
            wanted.x, wanted.y or (wanted.x and is_same), wanted.scale, wanted.row_bias,
            wanted.col_bias or (wanted.row_bias and is_same),
        )  # fmt: skip
        features = FeatureGradients(inputs.x, inputs.y, of_block.x, of_block.y, shards, BACKWARD)
        biases = BiasGradients(inputs.x, columns, of_block)
        for slab in slabs(inputs.y, shards, BACKWARD, beside=features.bytes_of_column):
            gradients: Gradients = (None,) * 5
            if 0 not in (inputs.x.shape[0], len(slab.rows)):
                gradients = self.implementation.backward(
                    vectors.at(slab, inputs, columns), state.statistics(statistics, slab),
                    state.upstream(upstream, slab), of_block, False,
                )  # fmt: skip
            features.add(gradients[0], gradients[1], slab)
            biases.add(gradients, slab)
        bias = None
        if wanted.bias:
            whole = inputs._replace(**vectors._asdict())
            bias = bias_gradient_of_ranks(whole, statistics, upstream, state.all_upstream(upstream))
        x, y = features.both(given.y is None)
        row_bias, col_bias = biases.both(given.y is None, shards)
        return x, y, biases.scale, bias, row_bias, col_bias

    def _half_backward(
        self, inputs: SimilarityInputs, shards: Shards, statistics: ShardedStatistics,
        upstream: SoftmaxUpstream, wanted: ShardedWanted,
    ) -> Gradients:  # fmt: skip
        of_block = SoftmaxWanted(wanted.x, wanted.x, wanted.scale, wanted.row_bias, wanted.row_bias)
        x, y, scale, row_bias, col_bias = mirrored.backward(
            self.implementation, inputs, shards, statistics, upstream, of_block
        )
        bias = None
        if wanted.bias:
            whole = inputs._replace(**Columns.of(inputs, shards, BACKWARD)._asdict())
            bias = bias_gradient_of_ranks(whole, statistics, upstream, upstream)
        return x, y, scale, bias, row_bias, col_bias


def _half(
    given: ShardedInputs, inputs: SimilarityInputs, shards: Shards, what: str
) -> SimilarityInputs | None:
    """The inputs, where half of the matrix is enough: its pairs are mutual, and rows are wanted."""
    is_possible = given.y is None and not inputs.has_columns
    return halves.by_labels(inputs, shards, what) if is_possible else None


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
