"""Edges of matryoshka_loss, and what is refused; its formula: test_objectives.py."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from machines import DTYPES
from objective_cases import ROWS, WIDTH, Call, check_calls, check_case, unit_rows
from torch import Tensor

import mmcore
from mmcore.bench.catalogue import CASES
from mmcore.bench.catalogue.matryoshka import four_prefixes, matryoshka
from mmcore.functional import clip_loss, matryoshka_loss, siglip_loss

pytestmark = pytest.mark.op

OPTIONS = four_prefixes(WIDTH)
DIMS, WEIGHTS = OPTIONS["dims"], OPTIONS["weights"]
PREFIXES = CASES["matryoshka_loss, four prefixes"]


@pytest.mark.parametrize(
    ("kind", "workspace"), [("random", 0), ("duplicates", 10**6), ("near", 10**9)]
)
def test_every_prefix_counts(compiled: str, kind: str, workspace: int) -> None:
    """Whatever is kept for the backward; with the default workspace: test_objectives.py."""
    with mmcore.workspace(workspace):
        check_case(PREFIXES, kind, PREFIXES.row.scales)


def test_whatever_is_kept_gives_the_same_bits(compiled: str) -> None:
    """Nothing, some blocks of the longest prefix, all of them and some of one more, of two, all of every prefix."""
    x, y = (F.normalize(torch.randn(500, 300), dim=1).requires_grad_() for _ in range(2))

    def values(workspace: int) -> list[Tensor]:
        with mmcore.workspace(workspace):
            loss = matryoshka_loss(x, y, 14.0, (16, 90, 200, 300))
            return [loss.detach(), *torch.autograd.grad(loss, (x, y))]

    nothing = values(0)
    for blocks in (4, 9, 13, 22, 40, 100):
        for kept, computed in zip(values(blocks * 163_840), nothing, strict=True):
            assert torch.equal(kept, computed)


def test_wide_prefixes_of_which_some_lie_too_far_below_the_bound(compiled: str) -> None:
    """Those are taken one by one, and fewer are left than would be kept."""
    x, y = (torch.randn(40, 300) for _ in range(2))
    x[:, :90], y[:, :90] = 1e-2, -1e-2
    pair = [z.requires_grad_() for z in (x, y)]
    exact = [z.detach().double().requires_grad_() for z in pair]
    ours = matryoshka_loss(*pair, 100.0, (16, 90, 200, 300))
    whole = matryoshka_loss(*exact, 100.0, (16, 90, 200, 300), backend="reference")
    torch.testing.assert_close(ours.double(), whole.double(), rtol=1e-5, atol=1e-5)
    found, expected = (torch.autograd.grad(v, z) for v, z in ((ours, pair), (whole, exact)))
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max()


def test_an_objective_of_ones_own(backend: str) -> None:
    x, y = (unit_rows().requires_grad_() for _ in range(2))
    ours = matryoshka_loss(
        x, y, 5.0, DIMS, weights=WEIGHTS,
        objective=lambda x, y, scale, backend: siglip_loss(x, y, scale, -5.0, backend=backend),
    )  # fmt: skip
    torch.testing.assert_close(
        ours,
        matryoshka(x, y, torch.tensor(5.0), **OPTIONS, objective=lambda *a: siglip_loss(*a, -5.0)),
    )


@pytest.mark.parametrize("rows", [1, 13, 200])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sizes_and_dtypes(backend: str, rows: int, dtype: torch.dtype) -> None:
    """Beside one call a prefix, whose arithmetic is tested elsewhere."""
    x, y = (torch.randn(rows, 70)[:, ::2].to(dtype).requires_grad_() for _ in range(2))
    scale, dims = torch.tensor(20.0, requires_grad=True), (4, 16, 35)
    one_by_one = matryoshka_loss(x, y, scale, dims, objective=clip_loss)
    together = matryoshka_loss(x, y, scale, dims)
    tolerance = (
        {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.02}
    )
    torch.testing.assert_close(together, one_by_one, **tolerance)
    found, expected = (torch.autograd.grad(loss, (x, y, scale)) for loss in (together, one_by_one))
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == other.dtype
        largest = max(other.abs().max().item(), 1e-6)
        torch.testing.assert_close(one / largest, other / largest, **tolerance)


def test_rows_far_below_the_bound_and_scales_beyond_it(backend: str) -> None:
    """Where one shift for all exponents does not do."""
    x = F.normalize(torch.randn(40, 24), dim=1)
    for y, scale in ((-x + 0.01 * torch.randn(40, 24), 100.0), (x.roll(1, 0), 1e4)):
        check_calls([Call(PREFIXES, {"x": x, "y": y, "scale": torch.tensor(scale)})])


def test_columns_of_a_matrix_for_rows(backend: str) -> None:
    """Transposed features have gradients, too."""
    x, y = (torch.randn(WIDTH, ROWS).T for _ in range(2))
    found = []
    for inputs in ((x, y), (x.contiguous(), y.contiguous())):
        leaves = [z.detach().requires_grad_() for z in inputs]
        found.append(torch.autograd.grad(matryoshka_loss(*leaves, 5.0, DIMS), leaves))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_features_of_any_length(backend: str) -> None:
    x, y = 1e20 * unit_rows(), 1e-20 * unit_rows()
    expected = matryoshka_loss(x, y, 5.0, DIMS, backend="reference")
    torch.testing.assert_close(matryoshka_loss(x, y, 5.0, DIMS), expected)


def test_zero_rows_and_nan(backend: str) -> None:
    x, y = unit_rows(), unit_rows()
    x[3], x[5, :3] = 0, 0
    inputs = [x.requires_grad_(), y.requires_grad_()]
    found = torch.autograd.grad(matryoshka_loss(x, y, 5.0, DIMS), inputs)
    assert all(torch.isfinite(gradient).all() for gradient in found)
    with torch.no_grad():
        x[7, 20] = torch.nan
    assert matryoshka_loss(x, y, 5.0, (4, 8)).isfinite()
    assert matryoshka_loss(x, y, 5.0, (4, 24)).isnan()


X, Y = unit_rows(), unit_rows()
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: matryoshka_loss(X, Y, 5.0, (8, 4)), ValueError, "dims must ascend from 1 to at most the 24 columns of x, got (8, 4)"),
    (lambda: matryoshka_loss(X, Y, 5.0, (8, 25)), ValueError, "dims must ascend from 1 to at most the 24 columns of x, got (8, 25)"),
    (lambda: matryoshka_loss(X, Y, 5.0, (0, 8)), ValueError, "dims must ascend from 1"),
    (lambda: matryoshka_loss(X, Y, 5.0, (8, 8)), ValueError, "dims must ascend from 1"),
    (lambda: matryoshka_loss(X, Y, 5.0, ()), ValueError, "dims must name at least one prefix, got none"),
    (lambda: matryoshka_loss(X, Y, 5.0, 4), TypeError, "dims must be a sequence of numbers, got int"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4,), weights=1.0), TypeError, "weights must be a sequence of numbers, got float"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4.0,)), TypeError, "dims must be whole numbers, got float"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4, 8), weights=(1.0,)), ValueError, "weights must be 2, one for each of dims, got 1"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4, 8), weights=(1.0, -1.0)), ValueError, "weights must be finite and at least 0, got -1.0"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4, 8), weights=(0.0, 0.0)), ValueError, "weights must be above 0 for at least one of dims, got (0.0, 0.0)"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4,), group=torch.arange(5)), ValueError, "group must have shape (60,)"),
    (lambda: matryoshka_loss(X, Y, 5.0, (4,), group=torch.arange(60), objective=clip_loss), ValueError, "group must be None where an objective is given"),
    (lambda: matryoshka_loss(X, Y[:9], 5.0, (4,)), ValueError, "y must have 60 rows to match x, got 9"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
