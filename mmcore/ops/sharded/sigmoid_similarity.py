"""sigmoid_similarity of a matrix whose rows and columns several ranks hold.

    total = Σ_{(i, j) ∉ X} softplus(s_ij)      positive = Σ_{(i, j) ∈ P} s_ij

of this rank's rows i and the columns j of all ranks: the sums over ranks are those of the whole
matrix. Formulas: ops/sigmoid_similarity.py. Targets, labels, groups, gradients and slabs as in
sharded/softmax_similarity.py. The backward computes the matrix anew.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
)
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import with_operands
from mmcore.ops.sharded import header
from mmcore.ops.sharded.matrix import Columns, FeatureGradients, ShardedInputs
from mmcore.ops.sharded.slabs import Shards, slabs

NAME = "sigmoid_similarity"
FORWARD, BACKWARD = f"{NAME}, forward", f"{NAME}, backward"


class ShardedSums(NamedTuple):
    """0-D float64, of this rank's rows."""

    total: Tensor
    positive: Tensor


class Run:
    """The two halves of the op on one backend."""

    def __init__(self, backend: str) -> None:
        self.implementation = backends.implementation(backend, NAME)

    def forward(self, given: ShardedInputs) -> ShardedSums:
        inputs, shards = given.matrix(), Shards.of(given.agreed, given.group)
        vectors, columns = Columns.of(inputs, shards, FORWARD), sum(shards.columns)
        total, positive = (inputs.x.new_zeros((), dtype=torch.float64) for _ in range(2))
        for slab in slabs(inputs.keys, shards, FORWARD):
            if 0 not in (inputs.x.shape[0], len(slab.rows)):
                found = self.implementation.forward(vectors.at(slab, inputs, columns), 0)
                total, positive = total + found.total, positive + found.positive
        return ShardedSums(total, positive)

    def backward(
        self, given: ShardedInputs, sums: ShardedSums, upstream: SigmoidUpstream,
        wanted: SigmoidWanted, rounds: bool,
    ) -> Gradients:  # fmt: skip
        inputs, shards = given.matrix(), Shards.of(given.agreed, given.group)
        header.same_step(inputs.x, BACKWARD, given.group)
        vectors, columns = Columns.of(inputs, shards, BACKWARD), sum(shards.columns)
        features = FeatureGradients(inputs.x, inputs.keys, wanted.x, wanted.y, shards, BACKWARD)
        of_block = wanted._replace(y=features.has_y)
        nothing = inputs.x.new_empty(0, dtype=torch.float32)
        kept = SigmoidSums(*sums, nothing, nothing.double())
        scale, bias = (torch.zeros_like(sums.total) for _ in range(2))
        for slab in slabs(inputs.keys, shards, BACKWARD, returns=features.width):
            gradients: Gradients = (None,) * 4
            if 0 not in (inputs.x.shape[0], len(slab.rows)):
                block = vectors.at(slab, inputs, columns)
                gradients = self.implementation.backward(block, kept, upstream, of_block, False)
            features.add(gradients[0], gradients[1], slab)
            for sum_, gradient in ((scale, gradients[2]), (bias, gradients[3])):
                if gradient is not None and gradient.numel():
                    sum_ += gradient
        return *features.both(given.y is None), scale, bias


def fake(inputs: ShardedInputs) -> ShardedSums:
    return ShardedSums(*(inputs.x.new_empty((), dtype=torch.float64) for _ in range(2)))


def products(inputs: ShardedInputs, wanted: SigmoidWanted) -> list[Product]:
    """The matrix of the logits."""
    return [inputs.product(wanted.x, wanted.y)]


family = Family(
    "sharded_sigmoid_similarity", inputs=ShardedInputs, results=ShardedSums,
    upstream=SigmoidUpstream, wanted=SigmoidWanted, fake=fake, products=products,
    reads=lambda inputs: ("total",), serves=Run,
)  # fmt: skip


def call(
    inputs: SimilarityInputs, agreed: Tensor, group: str, *, backend: str | None
) -> ShardedSums:
    """The sums, differentiable; the inputs are checked, and agreed on."""
    inputs = with_operands(inputs)
    return family(
        ShardedInputs(*inputs, agreed=agreed, group=group), backend=backends.selected(backend)
    )
