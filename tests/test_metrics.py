"""Metrics against their formulas over all rows at once."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import metrics


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "ROWS_AT_A_TIME", 30)


def rows(count: int = 100, width: int = 12) -> Tensor:
    """Unit rows around a direction of their own."""
    return F.normalize(torch.randn(count, width) + torch.randn(width), dim=1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_formulas(dtype: torch.dtype) -> None:
    x, y = rows().to(dtype), rows(width=12).to(dtype)
    wide_x, wide_y = x.double(), y.double()
    gap = (wide_x.mean(0) - wide_y.mean(0)).norm()
    torch.testing.assert_close(metrics.modality_gap(x, y), gap)
    centred_x, centred_y = wide_x - wide_x.mean(0), wide_y - wide_y.mean(0)
    share = torch.linalg.svdvals(centred_x)
    share = share / share.sum()
    rank = (-(share * share.log()).sum()).exp()
    torch.testing.assert_close(metrics.effective_rank(x), rank)
    kernels = [z @ z.T for z in (centred_x, centred_y)]
    cka = (kernels[0] * kernels[1]).sum() / (kernels[0].norm() * kernels[1].norm())
    torch.testing.assert_close(metrics.linear_cka(x, y), cka)


def test_sizes_differ_where_they_may() -> None:
    x, y = rows(70), rows(100)
    assert 0 < metrics.modality_gap(x, y) <= 2
    assert 0 < metrics.linear_cka(x, rows(70, 5)) < 1


def test_cka_does_not_see_rotation_and_scale() -> None:
    x = rows()
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    assert metrics.linear_cka(x.double(), 5 * x.double() @ rotation).item() == pytest.approx(1)


def test_rank_of_few_directions() -> None:
    line = torch.linspace(-1, 1, 50)[:, None] * torch.randn(12)
    assert metrics.effective_rank(line.double()).item() == pytest.approx(1, abs=1e-5)
    assert metrics.effective_rank(torch.ones(5, 3)).isnan()


def half_accuracy(seen: list[Tensor], unseen: list[Tensor], ridge: float) -> Tensor:
    """Least squares to ±1 with an intercept, row by row, each modality weighing the same."""
    rows = torch.cat(seen)
    target = torch.cat([torch.ones(len(seen[0])), -torch.ones(len(seen[1]))]).double()
    weight = torch.cat([torch.full((len(z),), 0.5 / len(z)).double() for z in seen])
    centre = (seen[0].mean(0) + seen[1].mean(0)) / 2
    centred = rows - centre
    variance = (weight[:, None] * centred.square()).sum() / rows.shape[1]
    penalty = (ridge * variance).sqrt() * torch.eye(rows.shape[1]).double()
    system = torch.cat([weight.sqrt()[:, None] * centred, penalty])
    wanted = torch.cat([weight.sqrt() * target, torch.zeros(rows.shape[1]).double()])
    direction = torch.linalg.lstsq(system, wanted).solution
    scores = [(unseen[0] - centre) @ direction, (centre - unseen[1]) @ direction]
    return sum((score > 0).double().mean() for score in scores) / 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("ridge", [1e-3, 1.0])
def test_separability_is_that_of_least_squares(dtype: torch.dtype, ridge: float) -> None:
    x, y = (torch.randn(count, 12) for count in (131, 84))
    x[:, 0] += 1.5
    x, y = x.to(dtype), y.to(dtype)
    halves = [[z[first::2].double() for z in (x, y)] for first in (0, 1)]
    expected = (half_accuracy(*halves, ridge) + half_accuracy(*halves[::-1], ridge)) / 2
    assert 0.6 < expected < 0.9
    torch.testing.assert_close(metrics.linear_separability(x, y, ridge=ridge), expected)


def test_separability_of_what_is_apart_and_what_is_alike() -> None:
    far = 3 * torch.eye(12)[0]
    x, y = F.normalize(torch.randn(400, 12), dim=1), F.normalize(torch.randn(500, 12), dim=1) + far
    assert metrics.linear_separability(x, y) == 1
    alike = torch.randn(2000, 12)
    assert metrics.linear_separability(alike[:900], alike[900:]) < 0.55
    assert metrics.linear_separability(alike, alike) == 0.5
    # More columns than rows: apart on the rows that were fitted, as anything is.
    few = torch.randn(40, 100)
    assert metrics.linear_separability(few[:20], few[20:]) < 0.8


def test_separability_does_not_depend_on_how_many_rows_a_modality_has() -> None:
    x, y = torch.randn(5000, 4), torch.randn(60, 4) + 1
    assert metrics.linear_separability(x, y).item() == pytest.approx(0.84, abs=0.05)


def test_separability_of_constant_rows() -> None:
    x, y = torch.ones(6, 3), torch.zeros(4, 3)
    assert metrics.linear_separability(x, y) == 1
    assert metrics.linear_separability(x, x.clone()) == 0.5


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: metrics.modality_gap(rows(), rows(width=4)), ValueError, "y must have 12 columns"),
    (lambda: metrics.modality_gap(rows(), rows().double()), TypeError, "y must have dtype float32"),
    (lambda: metrics.effective_rank(torch.ones(3)), ValueError, "x must have 2 dimensions, got 1"),
    (lambda: metrics.effective_rank(torch.ones(0, 3)), ValueError, "x must have at least 1 row"),
    (lambda: metrics.linear_cka(rows(5), rows(6)), ValueError, "y must have 5 rows to match x"),
    (
        lambda: metrics.linear_separability(rows(), rows(width=4)),
        ValueError,
        "y must have 12 columns",
    ),
    (
        lambda: metrics.linear_separability(rows(), rows(1)),
        ValueError,
        "y must have at least 2 rows, got 1",
    ),
    (
        lambda: metrics.linear_separability(rows(), rows(), ridge=0.0),
        ValueError,
        "ridge must be finite and above 0, got 0.0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
