"""vse_loss: the hardest negative of each row and column, which nothing but a comparison finds."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from machines import DTYPES
from objective_cases import unit_rows

from mmcore.bench.catalogue.hard_negatives import vse
from mmcore.functional import hardest_negatives, vse_loss

pytestmark = pytest.mark.op


def test_what_is_found_and_where(backend: str) -> None:
    """A row whose group is everybody's has no negative: −1, −∞, no gradient."""
    x, y = unit_rows(7).requires_grad_(), unit_rows(7)
    group = torch.tensor([-1, 0, 0, 1, 1, 1, -1])
    same = (group[:, None] == group) & (group[:, None] >= 0)
    products = x @ y.T
    negatives = products.masked_fill(same | torch.eye(7, dtype=torch.bool), -torch.inf)
    found = hardest_negatives(x, y, group=group)
    torch.testing.assert_close(found.positive.float(), products.diagonal())
    for side, value, index in (
        (1, found.row_hardest, found.row_index),
        (0, found.col_hardest, found.col_index),
    ):
        expected = negatives.max(side)
        torch.testing.assert_close(value.float(), expected.values)
        assert torch.equal(index, expected.indices)
    alone = hardest_negatives(x, y, group=torch.zeros(7, dtype=torch.int64))
    assert (alone.row_index == -1).all()
    assert (alone.col_hardest == -torch.inf).all()
    (gradient,) = torch.autograd.grad(alone.row_hardest.sum(), x)
    assert torch.equal(gradient, torch.zeros_like(x))


def test_of_equal_negatives_one_has_the_gradient(backend: str) -> None:
    """Duplicates: the value is that of plain PyTorch, and so is the sum of the gradients."""
    x, y = unit_rows(), unit_rows()
    x[30:], y[40:] = x[:30].clone(), y[:20].clone()
    losses = []
    for loss in (vse_loss, vse):
        a, b = x.clone().requires_grad_(), y.clone().requires_grad_()
        value = loss(a, b)
        losses.append((value, *(g.sum(0) for g in torch.autograd.grad(value, (a, b)))))
    for ours, theirs in zip(*losses, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("rows", [1, 2, 13, 140, 500])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_and_dtypes(backend: str, rows: int, dtype: torch.dtype) -> None:
    x, y = (torch.randn(rows, 70)[:, ::2].to(dtype).requires_grad_() for _ in range(2))
    loss = vse_loss(x, y)
    # A row alone has no negative.
    expected = vse(x.double(), y.double()) if rows > 1 else 0 * (x.double() + y.double()).sum()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-4, atol=1e-5)
    found, exact = (torch.autograd.grad(z, (x, y)) for z in (loss, expected))
    for one, other in zip(found, exact, strict=True):
        assert one.dtype == dtype
        # A few rows may have another of two negatives that are equal as rounded.
        differs = (one - other).abs().amax(1) > 0.02 * other.abs().max().clamp(min=1e-6)
        assert differs.sum() <= rows // 100


def test_threads_and_slabs_change_nothing(threads: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcore.backends.reference import hardest_negatives

    x, y = (unit_rows(500).round(decimals=1).requires_grad_() for _ in range(2))
    results = []
    for count, slab in ((1, 4096), (2, 4096), (3, 64)):
        torch.set_num_threads(count)
        monkeypatch.setattr(hardest_negatives, "ROWS_OF_A_SLAB", slab)
        loss = vse_loss(x, y)
        results.append((loss, *torch.autograd.grad(loss, (x, y))))
    for other in results[1:]:
        for one, another in zip(results[0], other, strict=True):
            torch.testing.assert_close(one, another, rtol=1e-6, atol=1e-8)
    assert all(torch.equal(a, b) for a, b in zip(results[0], results[1], strict=True))


def test_nan_is_not_lost(backend: str) -> None:
    x, y = unit_rows(), unit_rows()
    x[7, 3] = torch.nan
    assert vse_loss(x, y).isnan()


X, Y = unit_rows(), unit_rows()
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: vse_loss(X, Y[:9]), ValueError, "y must have 60 rows to match x, got 9"),
    (lambda: vse_loss(X, Y, margin=-1.0), ValueError, "margin must be finite and at least 0"),
    (lambda: vse_loss(X, Y, group=torch.arange(5)), ValueError, "group must have shape (60,)"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
