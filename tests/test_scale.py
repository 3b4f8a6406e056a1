"""An inverse temperature below 0 is refused by every objective that has one."""

from __future__ import annotations

import inspect
import re

import pytest
import torch
from machines import IS_GPU
from objective_cases import Call, every_case, results, unit_rows
from torch import Tensor

from mmcore import functional
from mmcore.bench.catalogue import CASES, Case

SCALED = [
    case for case in CASES.values() if "scale" in inspect.signature(case.row.function).parameters
]
MESSAGE = re.escape("scale, the inverse temperature, must be at least 0, got -5.0")


def losses(case: Case, scale: float | Tensor) -> tuple[Tensor, ...]:
    """Of a call with this scale, of all pairs alike."""
    call = Call.of(case)
    return results(case.function(call.width)(**call.arguments | {"scale": scale}))


@every_case(SCALED)
def test_below_zero(case: Case) -> None:
    """Catches an objective or an option that does not check its scale."""
    with pytest.raises(ValueError, match=MESSAGE):
        losses(case, -5.0)
    if not IS_GPU:  # where the host does not see a tensor's number
        with pytest.raises(ValueError, match=MESSAGE):
            losses(case, torch.tensor(-5.0, requires_grad=True))
    assert all(loss.isfinite() for loss in losses(case, 0.0))


def test_of_a_teacher() -> None:
    x, y = unit_rows(6), unit_rows(6)
    with pytest.raises(ValueError, match="teacher_" + MESSAGE):
        functional.distill_clip_loss(x, y, 5.0, y, x, -5.0)
