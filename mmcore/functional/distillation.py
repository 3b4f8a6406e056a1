"""Objectives against a teacher's similarities."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_of_rows
from mmcore.functional.similarity import softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import distillation as distillation_op
from mmcore.ops.distillation import DistillationInputs
from mmcore.ops.sharded import distillation as distillation_of_ranks
from mmcore.ops.sharded.distillation import CrossInputs


class DistillClipLosses(NamedTuple):
    """What `distill_clip_loss` returns, both 0-D.

    Example:
        >>> import torch, mmcore
        >>> x, y, a, b = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(4))
        >>> losses = mmcore.functional.distill_clip_loss(x, y, 20.0, a, b, 100.0)
        >>> losses._fields
        ('contrastive', 'distillation')
    """

    contrastive: Tensor
    distillation: Tensor


@scale_not_temperature
@tells_ranks
def distill_clip_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    teacher_scale: float | Tensor,
    *,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> DistillClipLosses:
    """The loss of CLIP, and the cross-entropy against a teacher's softmaxes in both directions.

    Equivalent, without ever storing an (N, N) matrix of the student or of the teacher, to ::

        logits, teacher = scale * x @ y.T, teacher_scale * teacher_x @ teacher_y.T
        contrastive = clip_loss(x, y, scale)
        distillation = (
            F.cross_entropy(logits, teacher.softmax(1))
            + F.cross_entropy(logits.T, teacher.T.softmax(1))
        ) / 2

    The cross-entropy is that of open_clip's ``DistillClipLoss``; it exceeds the Kullback-Leibler
    divergence by the teacher's entropy, which sends no gradient.

    Args:
        x: (N, D), any floating-point dtype; rows of unit length, of the student.
        y: (N, D), in the dtype of `x`; row i belongs to row i of `x`.
        scale: a number or a one-element tensor, at least 0: the student's inverse temperature.
        teacher_x: (N, E), any floating-point dtype (float64 where `x` is); row i is of what row i
            of `x` is. E need not be D.
        teacher_y: (N, E), in the dtype of `teacher_x`.
        teacher_scale: at least 0, the teacher's inverse temperature.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        `DistillClipLosses`, float32 (float64 for float64 inputs), of one pass over both matrices.
        Add them with weights of your own. The teacher's tensors get no gradient.

    Raises:
        TypeError, ValueError: as `softmax_similarity`; the four matrices differ in their rows, the
            teacher's in their columns, a tensor of the teacher requires a gradient, or one of `x`
            and `teacher_x` is float64 and the other is not.

    Memory:
        O(N), and blocks of both matrices. On a GPU, and where scales beyond 138 or rows that are
        far from all others leave the CPU's kernel no common shift, torch does the work: a slab of
        a million logits at a time, float64, and float32 copies of the features.

    Reference:
        Hinton et al., Distilling the Knowledge in a Neural Network, 2015,
        https://arxiv.org/abs/1503.02531

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> a, b = (mmcore.functional.l2_normalize(torch.randn(4, 16)) for _ in range(2))
        >>> losses = mmcore.functional.distill_clip_loss(x, y, 20.0, a, b, 100.0)
        >>> (losses.contrastive + losses.distillation).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("distill_clip_loss", process_group)
    x, y = operands.multiplied(x, y)
    teacher_x, teacher_y = operands.multiplied(teacher_x, teacher_y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    _check_teacher(x, teacher_x, teacher_y, teacher_scale, ranks)
    check.check_scale("scale", scale)
    check.check_scale("teacher_scale", teacher_scale)
    scale = check.as_scalar("scale", scale, x)
    teacher_scale = check.as_scalar("teacher_scale", teacher_scale, x)
    inputs = DistillationInputs(
        x=x, y=y, scale=scale, teacher_x=teacher_x, teacher_y=teacher_y,
        teacher_scale=teacher_scale,
    )  # fmt: skip
    if ranks is not None:
        return _over_ranks(inputs, ranks, backend)
    found = distillation_op.call(inputs, backend=backend)
    both = (found.row_lse + found.col_lse) / 2
    contrastive = (both - found.positive).mean()
    distillation = (both - (found.row_cross + found.col_cross) / 2).mean()
    return DistillClipLosses(as_loss(contrastive, x), as_loss(distillation, x))


def _over_ranks(inputs: DistillationInputs, ranks: Ranks, backend: str | None) -> DistillClipLosses:
    """The teacher's statistics, then those of the student, then the cross-entropy."""
    x, y, scale, teacher_x, teacher_y, teacher_scale, _ = inputs
    with torch.no_grad():
        teacher = softmax_similarity(
            teacher_x, teacher_y, teacher_scale, process_group=ranks, backend=backend
        )
    # Gradients of two ops meet in float32, where their difference keeps its digits.
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    x, y = x.to(wide), y.to(wide)
    student = softmax_similarity(x, y, scale, process_group=ranks, backend=backend)
    agreed = ranks.agree(
        "distill_clip_loss",
        {"x": x, "y": y, "scale": scale, "teacher_x": teacher_x, "teacher_y": teacher_y},
        sizes={"rows": x.shape[0], "columns": y.shape[0]},
    )
    cross = distillation_of_ranks.call(
        CrossInputs(
            x=x, y=y, scale=scale, teacher_x=teacher_x, teacher_y=teacher_y,
            teacher_scale=teacher_scale, row_lse=teacher.row_lse, col_lse=teacher.col_lse,
            agreed=agreed, group=ranks.group,
        ),
        backend=backend,
    )  # fmt: skip
    both = (student.row_lse + student.col_lse) / 2
    contrastive = mean_of_rows(both - student.row_pos, ranks)
    distillation = mean_of_rows(both - cross / 2, ranks)
    return DistillClipLosses(as_loss(contrastive, x), as_loss(distillation, x))


def _check_teacher(
    x: Tensor, teacher_x: Tensor, teacher_y: Tensor, teacher_scale: float | Tensor,
    ranks: Ranks | None,
) -> None:  # fmt: skip
    check.check_features(teacher_x, teacher_y, "teacher_x", "teacher_y", ranks is not None)
    check.check_device("teacher_x", teacher_x, x)
    for name, value in (("teacher_x", teacher_x), ("teacher_y", teacher_y)):
        check.check_same_rows(name, value, x)
    if (x.dtype == torch.float64) != (teacher_x.dtype == torch.float64):
        raise TypeError(
            f"teacher_x must be float64 where x is, got {teacher_x.dtype} and {x.dtype}"
        )
    named = {"teacher_x": teacher_x, "teacher_y": teacher_y, "teacher_scale": teacher_scale}
    for name, given in named.items():
        if torch.is_grad_enabled() and isinstance(given, Tensor) and given.requires_grad:
            raise ValueError(f"{name} must not require a gradient: the teacher gets none")
