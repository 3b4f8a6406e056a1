"""Statistics of a student's similarity matrix against the softmaxes of a teacher's.

    s_ij = scale·⟨x_i, y_j⟩                       t_ij = teacher_scale·⟨teacher_x_i, teacher_y_j⟩
    row_lse_i = log Σ_j exp s_ij                  teacher_row_lse_i = log Σ_j exp t_ij
    row_cross_i = Σ_j s_ij·exp(t_ij − teacher_row_lse_i)           positive_i = s_ii

and col_lse, teacher_col_lse and col_cross likewise over i. With a, b, c, e, f the upstream
gradients of row_lse, col_lse, positive, row_cross and col_cross, and none for the teacher:

    G_ij = a_i·exp(s_ij − row_lse_i) + b_j·exp(s_ij − col_lse_j) + [i = j]·c_i
         + e_i·exp(t_ij − teacher_row_lse_i) + f_j·exp(t_ij − teacher_col_lse_j)
    grad_x = scale·G·y     grad_y = scale·Gᵀ·x     grad_scale = Σ_i ⟨x_i, (G·y)_i⟩

The softmaxes are subtracted inside G: where the student has learned, they are equal.

x, y: (N, D); teacher_x, teacher_y: (N, E); scales: 0-D. All statistics are float64, (N,). is_apart:
whether a backend left the call to the reference, as it has to in the backward too.
"""

from __future__ import annotations

import torch

from mmcore.backends import selected
from mmcore.backends.reference.distillation import DistillationInputs as DistillationInputs
from mmcore.backends.reference.distillation import (
    DistillationStatistics,
    DistillationUpstream,
    DistillationWanted,
)
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.precision import as_multiplied, common_precision


def fake(inputs: DistillationInputs) -> DistillationStatistics:
    x = inputs.x
    statistics = [x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(7)]
    return DistillationStatistics._make([*statistics, x.new_empty((), dtype=torch.bool)])


def products(inputs: DistillationInputs, wanted: DistillationWanted) -> list[Product]:
    """The student's matrix and the teacher's."""
    rows = inputs.x.shape[0]
    return [
        Product(inputs.x.numel() * rows, wanted.x, wanted.y),
        Product(inputs.teacher_x.numel() * rows, False, False),
    ]


family = Family(
    "distillation", inputs=DistillationInputs, results=DistillationStatistics,
    upstream=DistillationUpstream, wanted=DistillationWanted, fake=fake, products=products,
)  # fmt: skip


def call(inputs: DistillationInputs, *, backend: str | None) -> DistillationStatistics:
    """The statistics, differentiable but for the teacher's; the inputs are checked."""
    student, teacher = as_multiplied(inputs.x), as_multiplied(inputs.teacher_x)
    inputs = inputs._replace(
        x=student, y=as_multiplied(inputs.y), teacher_x=teacher,
        teacher_y=as_multiplied(inputs.teacher_y),
        precision=common_precision(student, teacher),
    )  # fmt: skip
    return family(inputs, backend=selected(backend))
