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
whether a backend left the call to torch, as it has to in the backward too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu, selected
from mmcore.backends import distillation as by_slabs
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.precision import as_multiplied, multiplies_bfloat16

# Contract

_INPUTS = (
    "Tensor x, Tensor y, Tensor scale, Tensor teacher_x, Tensor teacher_y, Tensor teacher_scale, "
    "bool multiplies_bfloat16"
)
_STATISTICS = (
    "Tensor row_lse, Tensor col_lse, Tensor positive, Tensor row_cross, Tensor col_cross, "
    "Tensor teacher_row_lse, Tensor teacher_col_lse, Tensor is_apart"
)
SCHEMA = f"({_INPUTS}, str backend) -> ({_STATISTICS})"
BACKWARD_SCHEMA = (
    f"({_INPUTS}, {_STATISTICS}, Tensor grad_row_lse, Tensor grad_col_lse, Tensor grad_positive, "
    "Tensor grad_row_cross, Tensor grad_col_cross, bool[] wanted, str backend) "
    "-> (Tensor grad_x, Tensor grad_y, Tensor grad_scale)"
)


def fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    statistics = (x.new_empty(x.shape[0], dtype=torch.float64) for _ in range(7))
    return (*statistics, x.new_empty((), dtype=torch.bool))


def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients(arguments[:3], arguments[-2])


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.multiplies_bfloat16, ctx.backend = inputs
    ctx.mark_non_differentiable(*output[5:])
    ctx.save_for_backward(*tensors, *output)


def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors
    wanted = list(ctx.needs_input_grad[:3])
    gradients: Sequence[Tensor] = _backward_op(
        *saved[:6], ctx.multiplies_bfloat16, *saved[6:], *upstream[:5], wanted, ctx.backend
    )
    return (*only_wanted(gradients, wanted), *(None for _ in range(5)))


# Backends: torch itself is the reference, and what serves GPUs.

define(
    "distillation",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": by_slabs.distillation,
        "cpu": cpu.distillation,
        "triton": by_slabs.distillation,
    },
)
define(
    "distillation_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations={
        "reference": by_slabs.distillation_backward,
        "cpu": cpu.distillation_backward,
        "triton": by_slabs.distillation_backward,
    },
)

_backward_op = once_differentiable(torch.ops.mmcore.distillation_backward.default)
_call = differentiable(torch.ops.mmcore.distillation.default, save=save, backward=backward)


def call(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    teacher_scale: Tensor,
    *,
    backend: str | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """row_lse, col_lse, positive, row_cross and col_cross, differentiable."""
    student, teacher = as_multiplied(x), as_multiplied(teacher_x)
    of_bfloat16 = multiplies_bfloat16(student) and multiplies_bfloat16(teacher)
    row_lse, col_lse, positive, row_cross, col_cross, *_ = _call(
        student, as_multiplied(y), scale, teacher, as_multiplied(teacher_y), teacher_scale,
        of_bfloat16, selected(backend),
    )  # fmt: skip
    return row_lse, col_lse, positive, row_cross, col_cross
