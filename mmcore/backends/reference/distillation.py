"""distillation in plain torch, a slab of rows at a time; the formulas: ops/distillation.py.

Products are in the dtype of the arithmetic, everything beyond them in float64: about six matrices
of a slab's rows and all columns are in memory. Statistics of columns merge from slab to slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import Gradients, arithmetic_dtype

NUMBERS_OF_A_SLAB = 2**20


class DistillationInputs(NamedTuple):
    """A student's similarity matrix and its teacher's; the diagonal is positive in both."""

    x: Tensor  # (N, D)
    y: Tensor  # (N, D)
    scale: Tensor  # 0-D
    teacher_x: Tensor  # (N, E)
    teacher_y: Tensor  # (N, E)
    teacher_scale: Tensor  # 0-D
    precision: str = "highest"


class DistillationStatistics(NamedTuple):
    """What distillation finds: float64, (N,)."""

    row_lse: Tensor
    col_lse: Tensor
    positive: Tensor
    row_cross: Tensor
    col_cross: Tensor
    teacher_row_lse: Tensor
    teacher_col_lse: Tensor
    is_apart: Tensor  # 0-D boolean: whether the reference had to serve


class DistillationUpstream(NamedTuple):
    """Gradients of the statistics, of which the teacher's have none."""

    row_lse: Tensor
    col_lse: Tensor
    positive: Tensor
    row_cross: Tensor
    col_cross: Tensor


class DistillationWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    scale: bool


class Side(NamedTuple):
    """scale·x·yᵀ of the student or of the teacher, in the dtype of the arithmetic."""

    x: Tensor
    y: Tensor
    scale: Tensor

    @staticmethod
    def widened(x: Tensor, y: Tensor, scale: Tensor) -> Side:
        dtype = arithmetic_dtype(x.dtype)
        return Side(x.to(dtype), y.to(dtype), scale)

    def logits(self, rows: slice) -> Tensor:
        """float64; on the diagonal as precise as that."""
        x, y, scale = self.x[rows], self.y, self.scale.double()
        logits = scale * (x @ y.T).double()
        logits.diagonal(rows.start).copy_(scale * (x.double() * y[rows].double()).sum(1))
        return logits


def forward(inputs: DistillationInputs) -> DistillationStatistics:
    student, teacher = _sides(inputs)
    rows = student.x.shape[0]
    none = student.x.new_full((rows,), -torch.inf, dtype=torch.float64)
    row_lse, positive, row_cross, teacher_row_lse = (torch.empty_like(none) for _ in range(4))
    col_lse, teacher_col_lse, col_cross = none, none, torch.zeros_like(none)
    for slab in slabs(rows):
        s, t = student.logits(slab), teacher.logits(slab)
        positive[slab] = s.diagonal(slab.start)
        row_lse[slab], teacher_row_lse[slab] = s.logsumexp(1), t.logsumexp(1)
        row_cross[slab] = ((t - teacher_row_lse[slab, None]).exp() * s).sum(1)
        col_lse = torch.logaddexp(col_lse, s.logsumexp(0))
        together = torch.logaddexp(teacher_col_lse, t.logsumexp(0))
        col_cross = col_cross * (teacher_col_lse - together).exp()
        col_cross += ((t - together).exp() * s).sum(0)
        teacher_col_lse = together
    return DistillationStatistics(
        row_lse, col_lse, positive, row_cross, col_cross, teacher_row_lse, teacher_col_lse,
        is_apart=student.x.new_ones((), dtype=torch.bool),
    )  # fmt: skip


def backward(
    inputs: DistillationInputs, statistics: DistillationStatistics, upstream: DistillationUpstream,
    wanted: DistillationWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    student, teacher = _sides(inputs)
    grad_x, grad_y = (side.new_zeros(side.shape) for side in student[:2])
    for slab in slabs(student.x.shape[0]):
        s, t = student.logits(slab), teacher.logits(slab)
        g = upstream.row_lse[slab, None] * _softmax(s, statistics.row_lse[slab, None])
        g += upstream.col_lse * _softmax(s, statistics.col_lse)
        g += upstream.row_cross[slab, None] * _softmax(t, statistics.teacher_row_lse[slab, None])
        g += upstream.col_cross * _softmax(t, statistics.teacher_col_lse)
        g.diagonal(slab.start).add_(upstream.positive[slab])
        products = g.to(student.x.dtype)
        grad_x[slab] = products @ student.y
        grad_y += products.T @ student.x[slab]
    grad_scale = (grad_x.double() * student.x.double()).sum()
    scale = student.scale.to(grad_x.dtype)
    return grad_x * scale, grad_y * scale, grad_scale


def _softmax(logits: Tensor, lse: Tensor) -> Tensor:
    """exp(logits − lse); NaN, as torch's softmax has it, and not 0, where lse is inf."""
    return (logits - lse.masked_fill(lse == torch.inf, torch.nan)).exp_()


def slabs(rows: int) -> Iterator[slice]:
    """Ranges of rows of NUMBERS_OF_A_SLAB logits, or of one row."""
    size = max(1, NUMBERS_OF_A_SLAB // rows)
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def _sides(inputs: DistillationInputs) -> tuple[Side, Side]:
    student = Side.widened(inputs.x, inputs.y, inputs.scale)
    return student, Side.widened(inputs.teacher_x, inputs.teacher_y, inputs.teacher_scale)
