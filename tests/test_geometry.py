"""alignment_loss and uniformity_loss against their formulas over all pairs."""

from __future__ import annotations

import pytest
import torch
from objective_cases import check, draws, every_kind, unit_rows
from torch import Tensor

from mmcore import functional

pytestmark = pytest.mark.objective


@every_kind
@pytest.mark.parametrize("power", [1.0, 2.0, 3.0])
def test_alignment(kind: str, power: float) -> None:
    def plain(x: Tensor, y: Tensor) -> Tensor:
        return (x - y).square().sum(1).sqrt().pow(power).mean()

    check(
        lambda x, y: functional.alignment_loss(x, y, power=power),
        plain,
        [[x, y] for x, y, _ in draws(kind)],
    )


def test_alignment_of_equal_rows_has_no_gradient() -> None:
    x = unit_rows().requires_grad_()
    loss = functional.alignment_loss(x, x.detach(), power=1.0)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def mean_potential(x: Tensor) -> Tensor:
    square = (x[:, None] - x).square().sum(2)
    upper = square[torch.ones(len(x), len(x), dtype=torch.bool).triu(1)]
    return (-2 * upper).exp().mean().log()


@every_kind
def test_uniformity(backend: str, kind: str) -> None:
    """Of the rows of both sides, so that some are duplicates or near each other."""
    check(
        functional.uniformity_loss,
        mean_potential,
        [[torch.cat([x, y])] for x, y, _ in draws(kind, (1.0,))],
    )


def test_uniformity_of_longer_rows(backend: str) -> None:
    """‖x − y‖² from three numbers far larger than it: float32 keeps five digits."""
    x = (3 * unit_rows()).requires_grad_()
    ours, plain = functional.uniformity_loss(x), mean_potential(x.double())
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=0)
    pair = [torch.autograd.grad(loss, x)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
