"""Edges of mmd_loss; its formula: test_objectives.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import draws, every_kind, unit_rows

from mmcore.bench.catalogue.geometry import mmd
from mmcore.functional import mmd_loss

pytestmark = pytest.mark.objective

BANDWIDTHS = (0.25, 0.5, 1.0, 3.0)


@every_kind
def test_sets_that_lie_alike(backend: str, kind: str) -> None:
    """What is left of three means has their error: noise in the loss, not in its gradient."""
    for x, y, _ in draws(kind, (1.0,)):
        x.requires_grad_()
        ours, exact = mmd_loss(x, y), mmd(x.double(), y.double())
        assert abs(ours.item() - exact.item()) < 4e-7
        pair = [torch.autograd.grad(loss, x)[0] for loss in (ours, exact)]
        torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("unbiased", [False, True])
def test_float64(unbiased: bool) -> None:
    x, y = (z.double().requires_grad_() for z in (unit_rows(20), unit_rows(31)))
    ours = mmd_loss(x, y, bandwidths=BANDWIDTHS, unbiased=unbiased)
    plain = mmd(x, y, bandwidths=BANDWIDTHS, unbiased=unbiased)
    torch.testing.assert_close(ours, plain)
    torch.testing.assert_close(*(torch.autograd.grad(loss, [x, y]) for loss in (ours, plain)))


def test_bfloat16_gives_float32(backend: str) -> None:
    x, y = unit_rows().bfloat16(), unit_rows(40).bfloat16().abs()
    ours = mmd_loss(x, y)
    assert ours.dtype == torch.float32
    exact = mmd(x.double(), y.double())
    torch.testing.assert_close(ours.double(), exact, rtol=1e-5, atol=1e-6)


def test_a_set_and_itself(backend: str) -> None:
    x = unit_rows().requires_grad_()
    loss = mmd_loss(x, x)
    assert abs(loss.item()) < 1e-6
    assert torch.autograd.grad(loss, x)[0].abs().max() < 1e-6


def test_single_rows(backend: str) -> None:
    x, y = unit_rows(1), unit_rows(1)
    torch.testing.assert_close(mmd_loss(x, y), mmd(x, y))


def test_rows_too_far_apart_for_the_kernel(backend: str) -> None:
    x = (100 * torch.eye(24)).requires_grad_()
    loss = mmd_loss(x, -x.detach(), bandwidths=(0.1,))
    assert loss.item() == pytest.approx(2 / 24)
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


X = unit_rows(12)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: mmd_loss(X, X[:, :4]), ValueError, "y must have 24 columns to match x, got 4"),
    (lambda: mmd_loss(X, X.double()), TypeError, "y must have dtype float32 to match x"),
    (lambda: mmd_loss(X, X, bandwidths=()), ValueError, "bandwidths must have at least 1 number"),
    (lambda: mmd_loss(X, X, bandwidths=1.0), TypeError, "bandwidths must be a sequence of numbers"),
    (
        lambda: mmd_loss(X, X, bandwidths=(1.0, 0.0)),
        ValueError,
        "bandwidths[1] must be finite and above 0, got 0.0",
    ),
    (lambda: mmd_loss(X, X, unbiased=1), TypeError, "unbiased must be True or False, got int"),
    (
        lambda: mmd_loss(X, X[:1], unbiased=True),
        ValueError,
        "x and y must have at least 2 rows where unbiased is True, got 12 and 1",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
