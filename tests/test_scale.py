"""Inverse temperatures: none below 0, and 16-bit ones as they are."""

from __future__ import annotations

import inspect
import re

import numpy as np
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
    torch.manual_seed(0)  # of the rows that some objectives draw
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


@every_case(SCALED)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_of_16_bits(case: Case, dtype: torch.dtype) -> None:
    """Catches arithmetic with the scale in its own dtype: that of a whole model in 16 bits."""
    scale = torch.tensor(20.1, dtype=dtype)
    pairs = zip(losses(case, scale), losses(case, scale.double()), strict=True)
    for found, expected in pairs:
        torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@every_case(SCALED)
def test_of_an_array_without_dimensions(case: Case) -> None:
    """Catches an option that takes the argument as it came, and not as it was checked."""
    pairs = zip(losses(case, np.array(14.0)), losses(case, 14.0), strict=True)
    assert all(torch.equal(found, expected) for found, expected in pairs)
