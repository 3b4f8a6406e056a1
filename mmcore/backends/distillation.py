"""Distillation by a slab of rows at a time, by torch: where no kernel serves.

Products are in the dtype of the arithmetic, everything beyond them in float64: of the logits of a
slab some six copies of that width rest in memory. Statistics of columns merge from slab to slab.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import as_inputs

Tensors = tuple[Tensor, ...]
NUMBERS_OF_A_SLAB = 2**20


class Matrix(NamedTuple):
    """scale·x·yᵀ of the student or of the teacher."""

    x: Tensor
    y: Tensor
    scale: Tensor

    def wide(self) -> Matrix:
        """In the dtype of the arithmetic."""
        dtype = torch.float64 if self.x.dtype == torch.float64 else torch.float32
        return Matrix(self.x.to(dtype), self.y.to(dtype), self.scale)

    def logits(self, rows: slice) -> Tensor:
        """float64; on the diagonal as precise as that."""
        x, y, scale = self.x[rows], self.y, self.scale.double()
        logits = scale * (x @ y.T).double()
        logits.diagonal(rows.start).copy_(scale * (x.double() * y[rows].double()).sum(1))
        return logits


def slabs(rows: int) -> Iterator[slice]:
    size = max(1, NUMBERS_OF_A_SLAB // rows)
    return (slice(begin, min(begin + size, rows)) for begin in range(0, rows, size))


def distillation(*arguments: Any) -> Tensors:
    student, teacher = Matrix(*arguments[:3]).wide(), Matrix(*arguments[3:6]).wide()
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
    is_apart = student.x.new_ones((), dtype=torch.bool)
    return (
        row_lse, col_lse, positive, row_cross, col_cross, teacher_row_lse, teacher_col_lse, is_apart
    )  # fmt: skip


def distillation_backward(*arguments: Any) -> Tensors:
    likes, (*upstream, wanted) = arguments[:3], arguments[-6:]
    student, teacher = Matrix(*likes).wide(), Matrix(*arguments[3:6]).wide()
    row_lse, col_lse, _, _, _, teacher_row_lse, teacher_col_lse, _ = arguments[7:15]
    of_row, of_col, of_positive, of_row_cross, of_col_cross = upstream
    grad_x, grad_y = (side.new_zeros(side.shape) for side in student[:2])
    for slab in slabs(student.x.shape[0]):
        s, t = student.logits(slab), teacher.logits(slab)
        g = of_row[slab, None] * (s - row_lse[slab, None]).exp()
        g += of_col * (s - col_lse).exp()
        g += of_row_cross[slab, None] * (t - teacher_row_lse[slab, None]).exp()
        g += of_col_cross * (t - teacher_col_lse).exp()
        g.diagonal(slab.start).add_(of_positive[slab])
        products = g.to(student.x.dtype)
        grad_x[slab] = products @ student.y
        grad_y += products.T @ student.x[slab]
    grad_scale = (grad_x.double() * student.x.double()).sum()
    scale = student.scale.to(grad_x.dtype)
    return as_inputs((grad_x * scale, grad_y * scale, grad_scale), likes, wanted)
