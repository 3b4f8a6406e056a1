"""Training steps keep to their budgets of launches, torch kernels and allocations."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")
from step_budgets import HEADER, budgets, row
from step_counts import STEPS, TorchOps, counts_of

PINNED = (Path(__file__).parents[1] / "constraints.txt").read_text().splitlines()
IS_PINNED = f"torch=={torch.__version__.partition('+')[0]}" in PINNED


def test_every_step_has_a_budget() -> None:
    """Catches a step that nothing limits, and a budget of no step."""
    assert list(budgets()) == list(STEPS)


@pytest.mark.skipif(not IS_PINNED, reason="the table is of the torch of constraints.txt")
@pytest.mark.parametrize("name", STEPS)
def test_a_step_keeps_to_its_budget(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a launch, a torch kernel or an allocation more; and a table that allows too many."""
    counted, budget = counts_of(name, monkeypatch), budgets()[name]
    if counted != budget:
        pytest.fail(
            f"{HEADER}{row(name, budget).rstrip()}    the budget\n"
            f"{row(name, counted).rstrip()}    counted now\n"
            "If this is meant, python tests/step_budgets.py writes the table anew.",
            pytrace=False,
        )


def test_views_and_allocations_are_no_kernels() -> None:
    """Catches a counter that takes a view for a kernel, or misses an op in place."""
    with TorchOps() as ops:
        x = torch.empty(4, 6, device="meta")
        x.t().reshape(2, 12)  # a copy
        x.view(6, 4)[1:].transpose(0, 1).detach()
        x.mul_(2)
        x.new_empty(0)
    assert (ops.kernels, ops.allocations) == (2, 2)
