"""sigmoid_similarity of a matrix whose rows and columns several ranks hold.

    total = Σ_{(i, j) ∉ X} softplus(s_ij)      positive = Σ_{(i, j) ∈ P} s_ij

of this rank's rows i and the columns j of all ranks: the sums over ranks are those of the whole
matrix. Formulas: ops/sigmoid_similarity.py. Targets, labels, groups, gradients and slabs as in
sharded/softmax_similarity.py; where y is x, half of the blocks (halves.py).

With a `kept_size` the forward forms the gradients at a = −c = 1 block by block, as the forward of
one process does, and sends those of columns to their owners: `kept` are those of this rank's rows
of x and y, float32 (float64 for float64), `kept_sums` this rank's shares of those of scale and
bias. In the backward no rows travel, but a and c: where every rank has the same a = −c, it
multiplies by a. Otherwise, and where the workspace of any rank does not hold the gradients, it
computes the matrix anew.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends import workspace
from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
    arithmetic_dtype,
)
from mmcore.ops.autograd import wants_gradient
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import with_operands
from mmcore.ops.sharded import header
from mmcore.ops.sharded.collectives import all_gather
from mmcore.ops.sharded.matrix import ShardedInputs
from mmcore.ops.sharded.returns import Returns, adding
from mmcore.ops.sharded.sigmoid_blocks import Block, ShardedGradients, blocks
from mmcore.ops.sharded.slabs import Shards
from mmcore.tracing import is_recomputed_by_checkpoint

NAME = "sigmoid_similarity"
FORWARD, BACKWARD = f"{NAME}, forward", f"{NAME}, backward"
NOTHING: Gradients = (None,) * 4
ALL = SigmoidWanted(True, True, True, True)
UNUSED = 1  # of what is kept: so that a rank without rows keeps something, too


class Run:
    """The two halves of the op on one backend."""

    def __init__(self, backend: str) -> None:
        self.backend = backend
        self.implementation = backends.implementation(backend, NAME)

    def forward(self, given: ShardedInputs, kept_size: int) -> SigmoidSums:
        shards = Shards.of(given.agreed, given.group)
        keeps = kept_size > 0 and _is_held(given, shards)
        sums = given.x.new_zeros((1, 2), dtype=torch.float64)
        returns, gradients, beside = Returns(adding(sums), shards.group, FORWARD), None, 0
        if keeps:
            # Also the gradients of this rank's rows by a block, as kept by it and as found.
            left = max(0, shards.workspace - 2 * _kept_bytes(given, shards))
            shards = shards._replace(workspace=left)
            gradients = ShardedGradients(given, shards, FORWARD, ALL)
            beside = gradients.features.bytes_of_column * 4 // 3
        for block in blocks(given, shards, FORWARD, beside):
            found, of_block = self._forward_of(block, keeps)
            sums += found
            if block.answer is not None:
                returns.send(found, slice(0, 1), [block.answer])
            if gradients is not None:
                gradients.add(of_block, block)
        returns.finish()
        total, positive = sums[0]
        kept, kept_sums = _kept(gradients, given.x, kept_size)
        return SigmoidSums(total.clone(), positive.clone(), kept, kept_sums)

    def _forward_of(self, block: Block, keeps: bool) -> tuple[Tensor, Gradients]:
        """(1, 2): total and positive; and the gradients at a = −c = 1, if they are kept."""
        if block.is_empty:
            return block.inputs.x.new_zeros((1, 2), dtype=torch.float64), NOTHING
        size = backends.kept_size(self.backend, NAME, block.inputs) if keeps else 0
        sums = self.implementation.forward(block.inputs, size)
        found = torch.stack((sums.total, sums.positive))[None]
        if not keeps:
            return found, NOTHING
        weight = torch.full_like(sums.total, 1 if block.mirror is None else 2)
        upstream = SigmoidUpstream(weight, -weight)
        return found, self.implementation.backward(block.inputs, sums, upstream, ALL, False)

    def backward(
        self, given: ShardedInputs, sums: SigmoidSums, upstream: SigmoidUpstream,
        wanted: SigmoidWanted, rounds: bool,
    ) -> Gradients:  # fmt: skip
        shards = Shards.of(given.agreed, given.group)
        header.same_step(given.x, BACKWARD, given.group)
        every = all_gather(torch.stack(tuple(upstream)), shards.group, BACKWARD)
        if sums.kept.numel() > 0 and _is_held(given, shards) and _is_one_weight(every):
            return _scaled(given, sums, upstream.total, wanted)
        none = given.x.new_empty(0, dtype=torch.float32)
        sums = sums._replace(kept=none, kept_sums=none.double())
        gradients = ShardedGradients(given, shards, BACKWARD, wanted)
        for block in blocks(given, shards, BACKWARD, gradients.features.bytes_of_column):
            found = NOTHING
            if not block.is_empty:
                above = every[shards.group.rank]
                if block.mirror is not None:
                    above = above + every[block.mirror]
                found = self.implementation.backward(
                    block.inputs, sums, SigmoidUpstream(*above.unbind()), gradients.wanted, False
                )
            gradients.add(found, block)
        return gradients.all()


def _kept(gradients: ShardedGradients | None, x: Tensor, size: int) -> tuple[Tensor, Tensor]:
    if gradients is None:  # maybe of a size, where another rank's workspace does not hold its own
        kept = x.new_zeros(size, dtype=arithmetic_dtype(x.dtype))
        return kept, kept.new_zeros(2 if size else 0, dtype=torch.float64)
    *sides, scale, bias = gradients.all()
    flat = [side.flatten() for side in sides if side is not None]
    return torch.cat([*flat, flat[0].new_zeros(UNUSED)]), torch.stack((scale, bias))


def _kept_bytes(given: ShardedInputs, shards: Shards) -> int:
    """Of the rank that keeps most."""
    columns = [0] * len(shards.rows) if given.y is None else shards.columns
    rows = max(map(sum, zip(shards.rows, columns, strict=True)))
    return 4 * (rows * given.x.shape[1] + UNUSED)


def _is_held(given: ShardedInputs, shards: Shards) -> bool:
    """Whether every rank keeps gradients, or none."""
    return _kept_bytes(given, shards) <= shards.workspace


def _is_one_weight(upstream: Tensor) -> bool:
    """(W, 2): whether a = −c on all ranks, and the same."""
    total, positive = upstream.unbind(1)
    return bool(((total == -positive) & (total == total[0])).all())


def _scaled(
    given: ShardedInputs, sums: SigmoidSums, weight: Tensor, wanted: SigmoidWanted
) -> Gradients:
    """From what the forward kept."""
    by, size = weight.to(sums.kept.dtype), given.x.numel()
    x = (sums.kept[:size] * by).view(given.x.shape) if wanted.x else None
    y = None
    if wanted.y and given.y is not None:
        y = (sums.kept[size:-UNUSED] * by).view(given.y.shape)
    return x, y, *(sums.kept_sums * weight)


def fake(inputs: ShardedInputs, kept_size: int) -> SigmoidSums:
    total, positive = (inputs.x.new_empty((), dtype=torch.float64) for _ in range(2))
    kept = inputs.x.new_empty(kept_size, dtype=arithmetic_dtype(inputs.x.dtype))
    sums = inputs.x.new_empty(2 * torch.sym_min(1, kept_size), dtype=torch.float64)
    return SigmoidSums(total, positive, kept, sums)


def products(inputs: ShardedInputs, wanted: SigmoidWanted) -> list[Product]:
    """The matrix of the logits."""
    return [inputs.product(wanted.x, wanted.y)]


family = Family(
    "sharded_sigmoid_similarity", inputs=ShardedInputs, results=SigmoidSums,
    upstream=SigmoidUpstream, wanted=SigmoidWanted, fake=fake, products=products,
    reads=lambda inputs: ("kept", "kept_sums"), serves=Run,
)  # fmt: skip


def keeps(inputs: SimilarityInputs) -> bool:
    """Whether the forward forms gradients, if workspaces hold them; the same on all ranks."""
    sides = [inputs.x] if inputs.y is None else [inputs.x, inputs.y]
    return all(map(wants_gradient, sides)) and not is_recomputed_by_checkpoint()


def call(
    inputs: SimilarityInputs, agreed: Tensor, group: str, *, backend: str | None
) -> SigmoidSums:
    """The sums, differentiable; the inputs are checked, and agreed on."""
    size = 0
    if keeps(inputs):
        size = inputs.x.numel() + (0 if inputs.y is None else inputs.y.numel()) + UNUSED
        size = workspace.if_it_fits(size, workspace.current(inputs.x.device.type))
    inputs = with_operands(inputs)
    return family(
        ShardedInputs(*inputs, agreed=agreed, group=group), kept_size=size,
        backend=backends.selected(backend),
    )  # fmt: skip
