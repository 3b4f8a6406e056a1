"""Distillation: a small model beside a large one."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.contrastive import two_sides
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import both_ways
from mmcore.bench.catalogue.packages import open_clip_losses
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant


def distill_clip(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    teacher_x: Tensor,
    teacher_y: Tensor,
    teacher_scale: float,
) -> tuple[Tensor, Tensor]:
    """CLIP's loss, and the cross-entropy against the teacher's softmax, both ways."""
    logits = scale * (x @ y.T)
    teacher = teacher_scale * (teacher_x @ teacher_y.T).to(x.dtype)
    rows = F.cross_entropy(logits, teacher.softmax(1))
    columns = F.cross_entropy(logits.T, teacher.T.softmax(1))
    return both_ways(logits), (rows + columns) / 2


def with_teacher(draw: Draw) -> Arguments:
    """A teacher of the same width, who knows the student's pairs in part."""
    teacher = {"teacher_x": draw.unit(), "teacher_y": draw.unit(), "teacher_scale": 30.0}
    return two_sides(draw) | teacher


def sure_teacher(draw: Draw) -> Arguments:
    """A teacher whose positives are almost equal."""
    a, b = Draw(draw.rows, draw.width, kind="near", seed=1, dtype=draw.dtype).sides()
    return {"teacher_x": a, "teacher_y": b, "teacher_scale": 100.0}


def open_clip_distill() -> Loss:
    """DistillClipLoss, alone on its device."""
    loss = open_clip_losses().DistillClipLoss()
    return lambda x, y, scale, teacher_x, teacher_y, teacher_scale: loss(
        x, y, scale, teacher_x, teacher_y, teacher_scale
    )


DISTILL_CLIP = Row(
    functional.distill_clip_loss,
    nn.DistillClipLoss,
    distill_clip,
    with_teacher,
    (
        Variant(title="distillation", peers={"open_clip": open_clip_distill}),
        Variant("a teacher who is sure", inputs=sure_teacher),
    ),
    products=6,
    constants=("teacher_x", "teacher_y"),
    kernels="own",
)

ROWS = (DISTILL_CLIP,)
