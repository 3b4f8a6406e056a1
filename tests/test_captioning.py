"""Edges of linear_cross_entropy_loss and coca_loss; their formulas: test_objectives.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from machines import values_seen
from objective_cases import ROWS, WIDTH, unit_rows

from mmcore.functional import coca_loss, linear_cross_entropy_loss

pytestmark = pytest.mark.objective

CLASSES = ROWS + 40


def compare_with_torch(smoothing: float, dtype: torch.dtype, tolerance: float) -> None:
    x, weight = torch.randn(4, 5, WIDTH).to(dtype), torch.randn(CLASSES, WIDTH).to(dtype)
    bias, target = torch.randn(CLASSES).to(dtype), torch.randint(CLASSES, (4, 5))
    target[:, 3:] = -100
    inputs = [value.requires_grad_() for value in (x, weight, bias)]
    ours = linear_cross_entropy_loss(x, weight, target, bias, label_smoothing=smoothing)
    logits = F.linear(x.double(), weight.double(), bias.double())
    plain = F.cross_entropy(logits.mT, target, label_smoothing=smoothing)
    assert ours.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=0)
    pairs = zip(*(torch.autograd.grad(loss, inputs) for loss in (ours, plain)), strict=True)
    for one, other in pairs:
        largest = other.abs().max().item()
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_float64(smoothing: float) -> None:
    compare_with_torch(smoothing, torch.float64, 1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_bfloat16(backend: str, smoothing: float) -> None:
    compare_with_torch(smoothing, torch.bfloat16, 1e-2)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_nothing_but_padding(backend: str, smoothing: float) -> None:
    x, weight = unit_rows(6).requires_grad_(), unit_rows(9).requires_grad_()
    target = torch.full((6,), 3)
    loss = linear_cross_entropy_loss(x, weight, target, ignore_index=3, label_smoothing=smoothing)
    assert loss == 0
    for gradient in torch.autograd.grad(loss, [x, weight]):
        assert torch.equal(gradient, torch.zeros_like(gradient))
    assert F.cross_entropy(x @ weight.T, target, ignore_index=3).isnan()


def test_ignored_rows_have_no_gradient(backend: str) -> None:
    x, target = unit_rows(6).requires_grad_(), torch.tensor([1, -100, 4, 0, -100, 8])
    loss = linear_cross_entropy_loss(x, unit_rows(9), target)
    gradient = torch.autograd.grad(loss, x)[0]
    assert torch.equal((gradient != 0).any(1), target != -100)


def test_coca_weighs_as_the_paper() -> None:
    x, y, vocabulary = unit_rows(6), unit_rows(6), unit_rows(20)
    hidden, words = torch.randn(6, 4, WIDTH), torch.randint(20, (6, 4))
    terms = [
        coca_loss(
            x, y, 9.0, hidden, vocabulary, words, contrastive_weight=one, caption_weight=other
        )
        for one, other in ((1.0, 0.0), (0.0, 1.0))
    ]
    found = coca_loss(x, y, 9.0, hidden, vocabulary, words)
    torch.testing.assert_close(found, terms[0] + 2 * terms[1])


X, W, T = unit_rows(12), unit_rows(9), torch.arange(12) % 9
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: linear_cross_entropy_loss(X, W[:, :4], T), ValueError, "weight must have 24 columns to match x, got 4"),
    (lambda: linear_cross_entropy_loss(X, W.double(), T), TypeError, "weight must have dtype float32 to match x"),
    (lambda: linear_cross_entropy_loss(X[:0], W, T[:0]), ValueError, "x must have at least 1 row and 1 column, got shape (0, 24)"),
    (lambda: linear_cross_entropy_loss(T, W, T), TypeError, "x must be of a floating-point dtype, got int64"),
    (lambda: linear_cross_entropy_loss(X, W, T[:5]), ValueError, "target must have shape (12,) to match x, got (5,)"),
    (lambda: linear_cross_entropy_loss(X, W, T > 0), TypeError, "target must be of an integer dtype up to int64, got bool"),
    (lambda: linear_cross_entropy_loss(X, W, 3), TypeError, "target must be a tensor, got int"),
    pytest.param(lambda: linear_cross_entropy_loss(X, W, T - 1), ValueError, "target must be in [0, 9) or ignore_index -100, got -1", marks=values_seen),
    pytest.param(lambda: linear_cross_entropy_loss(X, W, T + 1), ValueError, "target must be in [0, 9) or ignore_index -100, got 9", marks=values_seen),
    (lambda: linear_cross_entropy_loss(X, W, T, torch.ones(3)), ValueError, "bias must have shape (9,), got (3,)"),
    (lambda: linear_cross_entropy_loss(X, W, T, label_smoothing=1.0), ValueError, "label_smoothing must be in [0, 1), got 1.0"),
    (lambda: linear_cross_entropy_loss(X, W, T, ignore_index=0.5), TypeError, "ignore_index must be an integer, got float"),
    (lambda: coca_loss(X, X, 5.0, X, W[:, :4], T), ValueError, "weight must have 24 columns to match hidden, got 4"),
    (lambda: coca_loss(X, X[:5], 5.0, X, W, T), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: coca_loss(X, X, 5.0, X, W, T, caption_weight=-1.0), ValueError, "caption_weight must be finite and at least 0, got -1.0"),
    (lambda: coca_loss(X, X, 5.0, X, W, T, contrastive_weight="a"), TypeError, "contrastive_weight must be a number, got str"),
    (lambda: coca_loss(X, X, 5.0, X, W, T, pad_id=None), TypeError, "pad_id must be an integer, got NoneType"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
