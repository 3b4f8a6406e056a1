"""The cross-entropy of a student's logits against a teacher's softmaxes, over several ranks.

    K_ij = exp(t_ij − row_lse_i) + exp(t_ij − col_lse_j)      cross_i = Σ_j K_ij·s_ij
    G_ij = grad_i·K_ij   grad_x = scale·G·y   grad_y = scale·Gᵀ·x   grad_scale = Σ_ij G_ij·p_ij

s = scale·p are the student's logits and t the teacher's; i are this rank's rows, j the columns of
all ranks, which come in slabs: rows of y and of the teacher's y side by side, as bytes. row_lse and
col_lse are the teacher's, over all ranks, of this rank's rows and columns. Σ_i cross_i over all
ranks is the cross-entropy of rows and of columns, but for its sign.

Never stored: K. Loop order: a slab of columns, of it a few rows at a time. Precision: products in
float32 (float64 for float64), all else in float64; gradients of columns are added in rank order.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.inputs import Gradients, arithmetic_dtype
from mmcore.backends.reference.distillation import NUMBERS_OF_A_SLAB, DistillationWanted
from mmcore.ops.family import Family
from mmcore.ops.sharded import header
from mmcore.ops.sharded.matrix import FeatureGradients
from mmcore.ops.sharded.slabs import Shards, Slab, slabs

FORWARD, BACKWARD = "distillation, forward", "distillation, backward"


class CrossInputs(NamedTuple):
    """A student's matrix and its teacher's, the teacher's statistics, and who holds the rows."""

    x: Tensor  # (n, D)
    y: Tensor  # (m, D)
    scale: Tensor
    teacher_x: Tensor  # (n, E)
    teacher_y: Tensor  # (m, E)
    teacher_scale: Tensor
    row_lse: Tensor  # (n,)
    col_lse: Tensor  # (m,)
    agreed: Tensor
    group: str


class Cross(NamedTuple):
    """float64, of this rank's rows."""

    cross: Tensor  # (n,)


class _Block(NamedTuple):
    """Some rows of this rank against a slab."""

    rows: slice
    weights: Tensor  # K
    products: Tensor  # p


class Run:
    """The two halves of the op; the same plain torch on every backend."""

    def __init__(self, backend: str) -> None:
        pass

    def forward(self, inputs: CrossInputs) -> Cross:
        shards = Shards.of(inputs.agreed, inputs.group)
        cross = inputs.row_lse.new_zeros(inputs.x.shape[0])
        col_lse = shards.gathered(inputs.col_lse, FORWARD)
        for slab in slabs(_side_by_side(inputs), shards, FORWARD):
            for block in _blocks(inputs, slab, col_lse):
                cross[block.rows] += (block.weights * block.products).sum(1)
        return Cross(cross * inputs.scale)

    def backward(
        self, inputs: CrossInputs, found: Cross, upstream: Cross, wanted: DistillationWanted,
        rounds: bool,
    ) -> Gradients:  # fmt: skip
        shards = Shards.of(inputs.agreed, inputs.group)
        header.same_step(inputs.x, BACKWARD, inputs.group)
        col_lse = shards.gathered(inputs.col_lse, BACKWARD)
        features = FeatureGradients(inputs.x, inputs.y, True, True, shards, BACKWARD)
        wide, scale = features.x.dtype, inputs.row_lse.new_zeros(())
        x = inputs.x.to(wide)
        for slab in slabs(_side_by_side(inputs), shards, BACKWARD, beside=features.bytes_of_column):
            y = _sides(inputs, slab)[0].to(wide)
            grad_x, grad_y = torch.zeros_like(x), torch.zeros_like(y)
            for block in _blocks(inputs, slab, col_lse):
                gradient = upstream.cross[block.rows, None] * block.weights
                scale += (gradient * block.products).sum()
                gradient = (gradient * inputs.scale).to(wide)
                grad_x[block.rows] = gradient @ y
                grad_y += gradient.T @ x[block.rows]
            features.add(grad_x, grad_y, slab)
        return *features.both(False), scale


def _side_by_side(inputs: CrossInputs) -> Tensor:
    """(m, bytes) of both sides' columns."""
    return torch.cat([z.contiguous().view(torch.uint8) for z in (inputs.y, inputs.teacher_y)], 1)


def _sides(inputs: CrossInputs, slab: Slab) -> tuple[Tensor, Tensor]:
    """The slab's rows of y and of the teacher's y."""
    width = inputs.y.shape[1] * inputs.y.element_size()
    own, teacher = slab.rows[:, :width], slab.rows[:, width:]
    return (
        own.contiguous().view(inputs.y.dtype),
        teacher.contiguous().view(inputs.teacher_y.dtype),
    )


def _blocks(inputs: CrossInputs, slab: Slab, col_lse: Tensor | None) -> Iterator[_Block]:
    y, teacher_y = _sides(inputs, slab)
    lse = slab.of(col_lse)
    assert lse is not None
    count = max(1, NUMBERS_OF_A_SLAB // max(1, len(y)))
    for start in range(0, inputs.x.shape[0] if len(y) else 0, count):
        rows = slice(start, start + count)
        t = _products(inputs.teacher_x[rows], teacher_y) * inputs.teacher_scale.double()
        weights = (t - inputs.row_lse[rows, None]).exp() + (t - lse).exp()
        yield _Block(rows, weights, _products(inputs.x[rows], y))


def _products(x: Tensor, y: Tensor) -> Tensor:
    wide = arithmetic_dtype(x.dtype)
    return (x.to(wide) @ y.to(wide).T).double()


family = Family(
    "sharded_distillation", inputs=CrossInputs, results=Cross, upstream=Cross,
    wanted=DistillationWanted,
    fake=lambda inputs: Cross(inputs.x.new_empty(inputs.x.shape[0], dtype=torch.float64)),
    reads=lambda inputs: (), serves=Run,
)  # fmt: skip


def call(inputs: CrossInputs, *, backend: str | None) -> Tensor:
    """cross, differentiable; the inputs are checked, and agreed on."""
    return family(inputs, backend=backends.selected(backend)).cross
