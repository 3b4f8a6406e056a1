"""Long searches show how far they are, and an interrupt keeps what was found."""

from __future__ import annotations

import sys
import types
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcore.retrieval import (
    Interrupted,
    TopK,
    galleries,
    merge,
    topk,
)
from mmcore.retrieval import progress as progress_module

ROWS, WIDTH, K = 300, 16, 5


@pytest.fixture
def queries() -> Tensor:
    return torch.randn(7, WIDTH)


@pytest.fixture
def features() -> Tensor:
    return torch.randn(ROWS, WIDTH)


@pytest.fixture
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Chunks are searched as they come."""
    monkeypatch.setattr(galleries, "FEWEST_ROWS", 1)


def check_equal(found: TopK, expected: TopK) -> None:
    assert np.array_equal(np.asarray(found.indices), np.asarray(expected.indices))
    assert np.array_equal(np.asarray(found.scores), np.asarray(expected.scores), equal_nan=True)


def test_an_interrupt_keeps_what_was_found(
    small_chunks: None, queries: Tensor, features: Tensor
) -> None:
    """Catches Ctrl-C that throws away an hour of work, or rows that are counted twice."""

    def reader() -> Iterator[Tensor]:
        yield from features[:200].split(40)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match="after 200 rows") as caught:
        topk(queries, reader(), K)
    stopped = caught.value
    assert isinstance(stopped, Interrupted)
    assert stopped.rows == 200
    check_equal(stopped.found, topk(queries, features[:200], K, score_dtype="float64"))
    rest = topk(queries, features[200:], K, first_index=200, score_dtype="float64")
    check_equal(merge([stopped.found, rest], K), topk(queries, features, K, score_dtype="float64"))


class FakeBar:
    made: list[FakeBar]

    def __init__(self, **options: Any) -> None:
        self.options, self.done, self.is_closed = options, options["initial"], False
        FakeBar.made.append(self)

    def update(self, count: int) -> None:
        self.done += count

    def close(self) -> None:
        self.is_closed = True


@pytest.fixture
def bars(monkeypatch: pytest.MonkeyPatch) -> list[FakeBar]:
    FakeBar.made = []
    module = types.ModuleType("tqdm.auto")
    module.tqdm = FakeBar  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "tqdm.auto", module)
    return FakeBar.made


def test_the_progress_bar(
    small_chunks: None,
    bars: list[FakeBar],
    monkeypatch: pytest.MonkeyPatch,
    queries: Tensor,
    features: Tensor,
) -> None:
    """Catches a bar for work that takes no time, one that counts wrong, and one that stays open."""
    topk(queries, features, K)
    assert not bars
    monkeypatch.setattr(progress_module, "SECONDS_BEFORE_A_BAR", -1)
    topk(queries, iter(features.split(100)), K)
    topk(queries, features, K, progress=True)
    topk(queries, features, K, progress=False)
    late, asked = bars
    assert (late.options["total"], late.done, late.options["disable"]) == (None, ROWS, None)
    assert (asked.options["total"], asked.done, asked.options["disable"]) == (ROWS, ROWS, False)
    assert late.is_closed
    assert asked.is_closed


def test_a_bar_that_is_asked_for_needs_tqdm(
    monkeypatch: pytest.MonkeyPatch, queries: Tensor, features: Tensor
) -> None:
    """Catches progress=True that is silently ignored; without it nothing needs tqdm."""
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    monkeypatch.setattr(progress_module, "SECONDS_BEFORE_A_BAR", -1)
    topk(queries, features, K)
    with pytest.raises(ImportError, match="pip install tqdm"):
        topk(queries, features, K, progress=True)
