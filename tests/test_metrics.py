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


REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: metrics.modality_gap(rows(), rows(width=4)), ValueError, "y must have 12 columns"),
    (lambda: metrics.modality_gap(rows(), rows().double()), TypeError, "y must have dtype float32"),
    (lambda: metrics.effective_rank(torch.ones(3)), ValueError, "x must have 2 dimensions, got 1"),
    (lambda: metrics.effective_rank(torch.ones(0, 3)), ValueError, "x must have at least 1 row"),
    (lambda: metrics.linear_cka(rows(5), rows(6)), ValueError, "y must have 5 rows to match x"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
