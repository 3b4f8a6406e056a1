"""`temperature` in place of `scale`: the error says what to give."""

from __future__ import annotations

from inspect import signature

import pytest
import torch

import mmcore
from mmcore import functional, nn
from mmcore.bench.catalogue import ROWS

SCALED = [
    name
    for name in functional.__all__
    if name.islower() and "scale" in signature(getattr(functional, name)).parameters
]
MODULES = {row.module.__name__: row for row in ROWS.values() if row.name in SCALED}


def test_both_kinds_are_found() -> None:
    """Catches a search that finds nothing, or a module that is missed."""
    assert {"clip_loss", "gram_loss", "sigmoid_similarity"} <= set(SCALED)
    assert len(MODULES) >= 16


@pytest.mark.parametrize("name", SCALED)
def test_functions_name_the_inverse(name: str) -> None:
    """Catches Python's own error, or one about another argument, from which nobody learns."""
    with pytest.raises(TypeError, match=rf"{name}\(\) takes no temperature: give scale = 1 / temp"):
        getattr(functional, name)(torch.ones(2, 2), temperature=0.07)


@pytest.mark.parametrize("name", MODULES)
def test_modules_name_the_inverse(name: str) -> None:
    """Catches a module that says nothing, where it is made or where it is called."""
    module, row = getattr(nn, name), MODULES[name]
    with pytest.raises(
        TypeError, match=r"takes no temperature: give its call (logit_)?scale = 1 /"
    ):
        module(temperature=0.07)
    made = module(**row.cases()[0].options(8))
    with pytest.raises(TypeError, match=r"takes no temperature: give (logit_)?scale = 1 / temp"):
        made(torch.ones(2, 2), torch.ones(2, 2), temperature=0.07)


def test_a_teachers_temperature_names_its_inverse() -> None:
    """Catches Python's own error for the second scale of a function."""
    x = torch.randn(4, 8)
    with pytest.raises(TypeError, match="give teacher_scale = 1 / teacher_temperature"):
        functional.distill_clip_loss(x, x, 5.0, x, x, teacher_temperature=0.1)


def test_a_real_temperature_stays() -> None:
    """Catches a refusal where the argument exists, and one where no scale would help."""
    x = functional.l2_normalize(torch.randn(6, 8))
    assert mmcore.nn.UniformityLoss(temperature=3.0)(x).isfinite()
    with pytest.raises(TypeError, match="unexpected keyword argument 'temperature'"):
        mmcore.nn.AlignmentLoss(temperature=3.0)


@pytest.mark.parametrize("name", SCALED)
def test_signatures_are_shown(name: str) -> None:
    """Catches a wrapper that hides arguments, documentation or name from help()."""
    function = getattr(functional, name)
    assert "arguments" not in signature(function).parameters
    assert (function.__name__, function.__module__[:17]) == (name, "mmcore.functional")
    assert function.__doc__
