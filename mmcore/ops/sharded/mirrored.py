"""softmax_similarity over ranks where y is x and only rows are wanted: half of the blocks.

What a rank finds of the columns of a block are statistics, and then gradients, of another rank's
rows: halves.py. They come back in the order of the hops, while the next block is computed.
Statistics, upstream gradients and merging: sharded/softmax_similarity.py.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
    arithmetic_dtype,
)
from mmcore.ops.sharded import halves
from mmcore.ops.sharded.matrix import Columns
from mmcore.ops.sharded.returns import Returns, adding
from mmcore.ops.sharded.slabs import Shards
from mmcore.ops.sharded.statistics import (
    BACKWARD,
    FORWARD,
    Implementation,
    ShardedStatistics,
    StateOfColumns,
    merged,
    nothing,
)


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
    for pair in halves.pairs(inputs.x, shards, FORWARD):
        block = halves.block_of(inputs, vectors, pair)
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
    for pair in halves.pairs(inputs.x, shards, BACKWARD):
        block = halves.block_of(inputs, vectors, pair)
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


def _wanted(wanted: SoftmaxWanted, pair: halves.Pair) -> SoftmaxWanted:
    return wanted._replace(y=False, col_bias=False) if pair.others is None else wanted
