"""Edges of the hardness of multiple_negatives_ranking_loss; its formula: test_objectives.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import ROWS, unit_rows
from torch import Tensor

from mmcore.bench.catalogue.ranking import MODES
from mmcore.bench.catalogue.ranking import ranking as plain_loss
from mmcore.functional import multiple_negatives_ranking_loss

pytestmark = pytest.mark.objective


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 12])
def test_float64_and_scale_of_zero(mode: str, rows: int) -> None:
    """A single query has no negatives of others; at scale 0 features have no gradient."""
    inputs = [unit_rows(rows).double().requires_grad_() for _ in range(3)]
    for number in (0.0, 7.0):
        scale = torch.tensor(number, dtype=torch.float64, requires_grad=True)
        ours = multiple_negatives_ranking_loss(
            inputs[0], inputs[1:], scale, hardness=mode, hardness_strength=3.0
        )
        plain = plain_loss(inputs[0], inputs[1:], scale, hardness=mode, hardness_strength=3.0)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, plain)
        pair = [torch.autograd.grad(loss, [*inputs, scale]) for loss in (ours, plain)]
        torch.testing.assert_close(*pair)


def test_one_document_each_has_no_hard_negatives(backend: str) -> None:
    x, y = unit_rows(), unit_rows()
    plain = multiple_negatives_ranking_loss(x, [y], 20.0)
    hard = multiple_negatives_ranking_loss(
        x, [y], 20.0, hardness="hard_negatives", hardness_strength=9.0
    )
    torch.testing.assert_close(hard, plain)


@pytest.mark.parametrize("mode", MODES)
def test_strength_of_zero_changes_nothing(mode: str) -> None:
    x, y = unit_rows(), unit_rows()
    assert torch.equal(
        multiple_negatives_ranking_loss(x, [y, x], 20.0, hardness=mode),
        multiple_negatives_ranking_loss(x, [y, x], 20.0),
    )


def test_bfloat16(backend: str) -> None:
    x, y, z = (unit_rows().bfloat16().requires_grad_() for _ in range(3))
    loss = multiple_negatives_ranking_loss(
        x, [y, z], 20.0, hardness="all_negatives", hardness_strength=9.0
    )
    exact = plain_loss(
        x.double(),
        [y.double(), z.double()],
        torch.tensor(20.0),
        hardness="all_negatives",
        hardness_strength=9.0,
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    ours, plain = (torch.autograd.grad(each, x)[0].double() for each in (loss, exact))
    # The gradients of the calls are bfloat16, and so is their sum.
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2 * plain.abs().max().item())


X = unit_rows(ROWS)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hardness": "all"}, ValueError, "hardness must be one of 'in_batch_negatives', 'hard_neg"),
    ({"hardness_strength": 1.0}, ValueError, "hardness must be given where hardness_strength is"),
    (
        {"hardness": MODES[0], "hardness_strength": -1.0},
        ValueError,
        "hardness_strength must be finite and at least 0, got -1.0",
    ),
    (
        {"hardness": MODES[0], "hardness_strength": "a"},
        TypeError,
        "hardness_strength must be a number, got str",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    loss: Callable[..., Tensor] = multiple_negatives_ranking_loss
    with pytest.raises(error, match=re.escape(message)):
        loss(X, [X], 5.0, **options)
