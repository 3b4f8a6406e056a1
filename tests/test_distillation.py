"""Edges of distill_clip_loss, and what is refused; its formula: test_objectives.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from machines import HALVES
from objective_cases import ROWS, Call, check_calls, near, unit_rows

from mmcore.bench.catalogue import CASES
from mmcore.bench.catalogue.distillation import distill_clip
from mmcore.functional import distill_clip_loss

pytestmark = pytest.mark.op


def test_a_student_who_has_learned(backend: str) -> None:
    """The softmaxes are equal: what remains of the gradient is rounding."""
    x, y = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    losses = distill_clip_loss(x, y, 50.0, x.detach(), y.detach(), 50.0)
    for gradient in torch.autograd.grad(losses.distillation, (x, y)):
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_rows_far_below_the_bound(backend: str, scale: float) -> None:
    x = unit_rows()
    y = F.normalize(-x + 0.02 * unit_rows(), dim=1)
    teacher = {"teacher_x": x, "teacher_y": -y, "teacher_scale": 20.0}
    arguments = {"x": x, "y": y, "scale": torch.tensor(scale), **teacher}
    check_calls([Call(CASES["distill_clip_loss"], arguments)])


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, 13, 200])
def test_sizes_and_dtypes(backend: str, dtype: torch.dtype, rows: int) -> None:
    """Half precision, strided; the teacher is float32."""
    x, y = (
        F.normalize(torch.randn(rows, 70), dim=1)[:, ::2].to(dtype).requires_grad_()
        for _ in range(2)
    )
    a, b = (F.normalize(torch.randn(rows, 16), dim=1) for _ in range(2))
    scale = torch.tensor(20.0, requires_grad=True)
    exact = distill_clip(x.double(), y.double(), scale, a.double(), b.double(), 30.0)
    for ours, expected in zip(distill_clip_loss(x, y, scale, a, b, 30.0), exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4)
        inputs = (x, y, scale)
        pairs = (torch.autograd.grad(z, inputs, retain_graph=True) for z in (ours, expected))
        for one, other in zip(*pairs, strict=True):
            largest = max(other.abs().max().item(), 1e-6)
            torch.testing.assert_close(one / largest, other / largest, rtol=0.02, atol=0.01)


def test_several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcore.backends.reference import distillation

    x, y, a, b = (unit_rows().double().requires_grad_(i < 2) for i in range(4))
    found = []
    for size in (2**20, 7 * ROWS):
        monkeypatch.setattr(distillation, "NUMBERS_OF_A_SLAB", size)
        losses = distill_clip_loss(x, y, 20.0, a, b, 30.0)
        found.append([*losses, *torch.autograd.grad(losses[0] + 2 * losses[1], (x, y))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_large_features_and_a_small_scale(backend: str) -> None:
    """Products far beyond the logits, and a sharp teacher."""
    x, y, a = (unit_rows() for _ in range(3))
    b = near(a, 0.05)
    expected = distill_clip_loss(x, y, 9.0, a, b, 130.0)
    found = distill_clip_loss(3e7 * x, 3e7 * y, 1e-14, a, b, 130.0)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-4, atol=1e-4)
    assert distill_clip_loss(3e7 * x, y, 0.0, a, b, 130.0).distillation.isfinite()


def test_nan_is_not_lost(backend: str) -> None:
    x, y, a, b = (unit_rows() for _ in range(4))
    a[3, 0] = torch.nan
    losses = distill_clip_loss(x, y, 20.0, a, b, 30.0)
    assert losses.contrastive.isfinite()
    assert losses.distillation.isnan()
    x[3, 0] = torch.nan
    assert distill_clip_loss(x, y, 20.0, x, b, 30.0).contrastive.isnan()


X, Y = unit_rows(), unit_rows()
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: distill_clip_loss(X, Y[:9], 5.0, X, Y, 5.0), ValueError, "y must have 60 rows"),
    (lambda: distill_clip_loss(X, Y, 5.0, X[:9], Y[:9], 5.0), ValueError, "teacher_x must have 60"),
    (lambda: distill_clip_loss(X, Y, 5.0, X, Y[:, :9], 5.0), ValueError, "teacher_y must have 24"),
    (
        lambda: distill_clip_loss(X, Y, 5.0, X, Y.half(), 5.0),
        TypeError,
        "teacher_y must have dtype",
    ),
    (lambda: distill_clip_loss(X, Y, 5.0, X.double(), Y.double(), 5.0), TypeError, "be float64"),
    (
        lambda: distill_clip_loss(X, Y, 5.0, X.clone().requires_grad_(), Y, 5.0),
        ValueError,
        "teacher_x must not require a gradient",
    ),
    (lambda: distill_clip_loss(X, Y, 5.0, X, Y, "a"), TypeError, "teacher_scale must be a number"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
