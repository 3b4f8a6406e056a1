"""Edges of alignment_loss and uniformity_loss; the formulas: test_objectives.py."""

from __future__ import annotations

import pytest
import torch
from objective_cases import unit_rows

from mmcore import functional
from mmcore.bench.catalogue.geometry import uniformity

pytestmark = pytest.mark.objective


def test_alignment_of_equal_rows_has_no_gradient() -> None:
    x = unit_rows().requires_grad_()
    loss = functional.alignment_loss(x, x.detach(), power=1.0)
    assert loss == 0
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_uniformity_of_longer_rows(backend: str) -> None:
    """‖x − y‖² from three numbers far larger than it: float32 keeps five digits."""
    x = (3 * unit_rows()).requires_grad_()
    ours, plain = functional.uniformity_loss(x), uniformity(x.double())
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=0)
    pair = [torch.autograd.grad(loss, x)[0] for loss in (ours, plain)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-5)
