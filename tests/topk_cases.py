"""Searches of the CPU kernels beside the oracle, and inputs that are hard for a first pass."""

from __future__ import annotations

from collections.abc import Callable

import torch
from retrieval_oracle import oracle_topk
from torch import Tensor

from mmcore.backends.cpu import topk
from mmcore.backends.retrieval import FIRST_PASSES, Found, TopkInputs

BLOCK = 300  # just past a block of the gallery, on every instruction set


def unit_rows(rows: int, width: int) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width), dim=1)


def inputs(queries: Tensor, gallery: Tensor, k: int = 10, **options: object) -> TopkInputs:
    values: dict[str, object] = {
        "metric": "inner_product",
        "offset": 0,
        "bias": None,
        "query_group": None,
        "gallery_group": None,
        "excluded": None,
    }
    return TopkInputs(queries, gallery, k, **(values | options))  # type: ignore[arg-type]


def check(call: TopkInputs, best: Found | None = None, expected: Found | None = None) -> Found:
    """The kernels find what the oracle finds, to the bit."""
    found = topk.search(call, best)
    expected = oracle_topk(call, best) if expected is None else expected
    wrong = (found.indices != expected.indices).any(1).nonzero().flatten().tolist()
    assert not wrong, f"queries {wrong[:5]} of {len(wrong)} have other items"
    assert torch.equal(found.scores, expected.scores)
    return found


def check_passes(call: TopkInputs) -> None:
    """As `check`, of every first pass, and with the gallery prepared."""
    expected = oracle_topk(call)
    for first_pass in FIRST_PASSES:
        check(call._replace(first_pass=first_pass), expected=expected)
    prepared = topk.prepare(call.gallery, call.metric)
    check(call._replace(prepared=prepared), expected=expected)


HARD: dict[str, Callable[[Tensor, Tensor], None]] = {}


def hard(change: Callable[[Tensor, Tensor], None]) -> Callable[[Tensor, Tensor], None]:
    HARD[change.__name__] = change
    return change


@hard
def near_ties(x: Tensor, y: Tensor) -> None:
    """Neighbours that differ by one unit in the last place of one number, in random order."""
    order = torch.randperm(len(y))
    y[:] = x[:1]
    for step, i in enumerate(order.tolist()):
        k = step % y.shape[1]
        y[i, k] = torch.nextafter(y[i, k], torch.tensor(torch.inf if step % 3 else -torch.inf))


@hard
def duplicates(x: Tensor, y: Tensor) -> None:
    """A fifth of the gallery is one row, to which most queries are close."""
    y[torch.randint(0, len(y), (len(y) // 5,))] = y[7].clone()
    x += 3 * y[7]


@hard
def all_equal(x: Tensor, y: Tensor) -> None:
    y[:] = y[0].clone()
    x[:] = y[0].clone()


@hard
def cone(x: Tensor, y: Tensor) -> None:
    """All rows lie around one direction, of which one number is far larger than the rest."""
    centre = torch.randn(y.shape[1])
    centre[0] = 20
    x += centre
    y += centre


@hard
def unlike_norms(x: Tensor, y: Tensor) -> None:
    y *= torch.exp(4 * torch.randn(len(y), 1))
    x *= torch.exp(4 * torch.randn(len(x), 1))


@hard
def not_finite(x: Tensor, y: Tensor) -> None:
    """NaN and infinities on both sides: scores that are NaN are never found, infinite ones are."""
    y[3, 1] = y[250, 0] = torch.nan
    y[4, 2] = y[299, 3] = torch.inf
    y[5, 2], y[6, 1:3] = -torch.inf, torch.tensor([torch.inf, -torch.inf])
    x[0, 1] = torch.nan
    x[1, 1] = torch.inf
    x[2, 1], x[2, 2] = -torch.inf, 0


@hard
def huge_and_tiny(x: Tensor, y: Tensor) -> None:
    """Products overflow in float32, squares underflow, numbers are denormal."""
    y[::7] *= 1e30
    y[1::7] *= 1e-30
    y[2::7] *= 1e-41
    x[0] *= 1e30
    x[1] *= 1e-30
    x[2] *= 1e-41


@hard
def everything_tiny(x: Tensor, y: Tensor) -> None:
    x *= 1e-30
    y *= 1e-30


@hard
def zeros(x: Tensor, y: Tensor) -> None:
    x[::2] = 0
    y[::3] = 0
