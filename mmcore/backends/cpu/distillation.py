"""Launches the kernel of distillation: both matrices in one walk."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore import _C
from mmcore.backends.cpu.arrays import double, new, threads, vector
from mmcore.backends.cpu.inputs import GradientMemory, as_arrays
from mmcore.backends.inputs import Gradients, SimilarityInputs
from mmcore.backends.reference import distillation as reference
from mmcore.backends.reference.distillation import (
    DistillationInputs,
    DistillationStatistics,
    DistillationUpstream,
    DistillationWanted,
)


def forward(inputs: DistillationInputs) -> DistillationStatistics:
    student, teacher = _matrices(inputs)
    statistics = [new(inputs.x.shape[0], torch.float64) for _ in range(7)]
    arrays = [vector(part) for part in statistics]
    if not _C.distillation_forward(as_arrays(student), as_arrays(teacher), arrays, threads()):
        return reference.forward(inputs)
    is_apart = torch.zeros((), dtype=torch.bool, device="cpu")
    return DistillationStatistics._make([*statistics, is_apart])


def backward(
    inputs: DistillationInputs, statistics: DistillationStatistics, upstream: DistillationUpstream,
    wanted: DistillationWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    *found, is_apart = statistics
    if is_apart:
        return reference.backward(inputs, statistics, upstream, wanted, rounds)
    student, teacher = _matrices(inputs)
    memory = GradientMemory.of(student, False, wanted)
    grad_scale = _C.distillation_backward(
        as_arrays(student), as_arrays(teacher), [vector(part) for part in found],
        [vector(part) for part in upstream], *memory.arrays(), threads(),
    )  # fmt: skip
    return memory.x, memory.y, double(grad_scale)


def _matrices(inputs: DistillationInputs) -> tuple[SimilarityInputs, SimilarityInputs]:
    """The student's matrix and the teacher's."""
    diagonal = torch.arange(inputs.x.shape[0], device="cpu")

    def matrix(x: Tensor, y: Tensor, scale: Tensor) -> SimilarityInputs:
        return SimilarityInputs(
            x=x, y=y, scale=scale, bias=None, row_bias=None, col_bias=None, target=diagonal,
            row_label=None, col_label=None, row_group=None, col_group=None,
            precision=inputs.precision,
        )  # fmt: skip

    return (
        matrix(inputs.x, inputs.y, inputs.scale),
        matrix(inputs.teacher_x, inputs.teacher_y, inputs.teacher_scale),
    )
