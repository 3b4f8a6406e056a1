"""Edges of objectives over D×D matrices; their formulas: test_objectives.py."""

from __future__ import annotations

import pytest
import torch
from gram_cases import BATCH, features
from objective_cases import WIDTH, unit_rows

from mmcore import functional, metrics

pytestmark = [pytest.mark.objective, pytest.mark.usefixtures("several_slabs")]


def test_cca_of_a_linear_map_finds_every_correlation() -> None:
    x = torch.randn(BATCH, 6, dtype=torch.float64)
    y = x @ torch.randn(6, 9, dtype=torch.float64) + 3
    loss = functional.cca_loss(x, y, regularization=1e-12)
    assert loss.item() == pytest.approx(-6)


def test_cca_refuses_what_has_no_root() -> None:
    """Catches a regularisation that is lost in rounding, and goes unnoticed."""
    x, y = features("random")
    with pytest.raises(torch.linalg.LinAlgError):
        functional.cca_loss(1e4 * x[:5], y[:5], regularization=1e-12)


def test_cka_is_that_of_the_metrics() -> None:
    x, y = features("random")
    expected = 1 - metrics.linear_cka(x, y[:, :5])
    torch.testing.assert_close(functional.cka_loss(x, y[:, :5]), expected.float())


def test_cka_of_equal_rows_has_no_gradient() -> None:
    x, y = features("random")
    same = x[:1].expand(BATCH, -1).clone().requires_grad_()
    loss = functional.cka_loss(same, y.requires_grad_())
    assert loss == 1
    for gradient in torch.autograd.grad(loss, [same, y]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_cyclip_does_not_see_a_rotation_within() -> None:
    x = unit_rows(BATCH)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    within = functional.cyclip_loss(x, x @ rotation, cross_modal_weight=0.0)
    total = functional.cyclip_loss(x, x @ rotation)
    assert abs(within.item()) < 1e-6 * total.item()
