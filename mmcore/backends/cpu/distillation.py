"""Launches the kernel of distillation: both matrices in one walk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.backends import distillation as by_slabs
from mmcore.backends.cpu.arrays import double, new, threads, vector
from mmcore.backends.cpu.module import _C
from mmcore.backends.cpu.similarity import Gradients, Similarity
from mmcore.backends.inputs import as_inputs


def distillation(*arguments: Any) -> tuple[Tensor, ...]:
    student, teacher = _matrices(*arguments)
    statistics = [new(student.x.shape[0], torch.float64) for _ in range(7)]
    arrays = [vector(part) for part in statistics]
    if not _C.distillation_forward(student.arrays(), teacher.arrays(), arrays, threads()):
        return by_slabs.distillation(*arguments)
    return (*statistics, torch.zeros((), dtype=torch.bool, device="cpu"))


def distillation_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, is_apart = arguments[:15]
    if is_apart:
        return by_slabs.distillation_backward(*arguments)
    *upstream, wanted = arguments[15:]
    student, teacher = _matrices(*described[:7])
    gradients = Gradients.of(student, False, wanted)
    grad_scale = _C.distillation_backward(
        student.arrays(), teacher.arrays(), [vector(part) for part in described[7:]],
        [vector(part) for part in upstream], *gradients.arrays(), threads(),
    )  # fmt: skip
    return as_inputs([gradients.x, gradients.y, double(grad_scale)], described[:3], wanted)


def _matrices(*arguments: Any) -> tuple[Similarity, Similarity]:
    """The student's matrix and the teacher's."""
    diagonal = torch.arange(arguments[0].shape[0], device="cpu")
    pairs: tuple[Any, ...] = (diagonal, None, None, None, None, "all", True, arguments[6])
    student, teacher = arguments[:3], arguments[3:6]
    no_bias: tuple[None, ...] = (None, None, None)
    return Similarity(*student, *no_bias, *pairs), Similarity(*teacher, *no_bias, *pairs)
