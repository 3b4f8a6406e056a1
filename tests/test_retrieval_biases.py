"""Biases against hubs equal their formulas and change what is found; what recall counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcore.retrieval import Gallery, csls_bias, inverted_softmax_bias, recall_of, topk

pytestmark = pytest.mark.op


def unit_rows(rows: int, width: int = 24) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, width), dim=1)


@pytest.mark.parametrize("k", [1, 10, 40, 100])
def test_csls(backend: str, k: int) -> None:
    """Catches the mean over too many rows: with a k beyond the bank, all of it counts."""
    bank, gallery = unit_rows(40), unit_rows(90)
    scores = gallery.double() @ bank.double().T
    expected = scores.topk(min(k, 40), dim=1).values.mean(1) / -2
    torch.testing.assert_close(csls_bias(bank, gallery, k), expected, rtol=1e-12, atol=1e-12)


def test_csls_orders_as_its_paper(backend: str) -> None:
    """Catches half or twice the bias: the order is that of 2·cos(x, y) − r(x) − r(y)."""
    queries, gallery = torch.randn(30, 16), torch.randn(50, 16)
    x, y = (torch.nn.functional.normalize(side.double(), dim=1) for side in (queries, gallery))
    cosines = x @ y.T
    r_x, r_y = cosines.topk(5, dim=1).values.mean(1), cosines.T.topk(5, dim=1).values.mean(1)
    order = (2 * cosines - r_x[:, None] - r_y).argsort(dim=1, descending=True)
    bias = csls_bias(queries, gallery, 5, metric="cosine")
    found = topk(queries, gallery, 50, metric="cosine", gallery_bias=bias)
    assert torch.equal(found.indices, order)


@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_inverted_softmax(backend: str, scale: float) -> None:
    """Catches the softmax over the wrong side, a missing scale or sign."""
    bank, gallery = unit_rows(40), unit_rows(90)
    logits = scale * gallery.double() @ bank.double().T
    expected = logits.logsumexp(1) / -scale
    found = inverted_softmax_bias(bank, gallery, scale)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_kinds_and_chunks() -> None:
    """Catches biases that belong to other rows where the gallery is read by chunks."""
    bank, gallery = unit_rows(40), unit_rows(90)
    for bias in (
        lambda bank, gallery: csls_bias(bank, gallery, 4),
        lambda bank, gallery: inverted_softmax_bias(bank, gallery, 10.0),
    ):
        expected = bias(bank, gallery)
        chunks = bias(bank, iter(gallery.split(37)))
        torch.testing.assert_close(chunks, expected, rtol=1e-6, atol=1e-7)
        arrays = bias(bank, gallery.numpy())
        assert isinstance(arrays, np.ndarray)
        assert np.array_equal(arrays, expected.numpy())
        assert bias(bank, gallery[:0]).shape == (0,)


def test_csls_of_rows_with_nan() -> None:
    """Catches NaN in one row of the bank or the gallery that spreads to others."""
    bank, gallery = unit_rows(40), unit_rows(90)
    expected = csls_bias(bank[1:], gallery, 4)
    bank[0, 0], gallery[7, 3] = torch.nan, torch.nan
    found = csls_bias(bank, gallery, 4)
    assert found.isnan().nonzero().flatten().tolist() == [7]
    expected[7] = torch.nan
    assert torch.equal(found.nan_to_num(), expected.nan_to_num())


def test_a_hub_is_found_less_often() -> None:
    """Catches a bias that does not do what it is for: one item that is near to every query."""
    queries = unit_rows(200)
    gallery = torch.nn.functional.normalize(queries + 0.8 * unit_rows(200), dim=1)
    gallery[0] = torch.nn.functional.normalize(queries.mean(0), dim=0) * 4

    def hits(bias: Tensor | None) -> tuple[int, int]:
        best = topk(queries, gallery, 1, gallery_bias=bias).indices[:, 0]
        return int((best == 0).sum()), int((best == torch.arange(200)).sum())

    (plain_hub, plain_right) = hits(None)
    for bias in (csls_bias(queries, gallery), inverted_softmax_bias(queries, gallery, 30.0)):
        hub, right = hits(bias)
        assert hub < plain_hub / 2
        assert right > plain_right


class Answer:
    """An index that returns what it is told, as faiss does or, by `keys`, as usearch does."""

    def __init__(self, numbers: Any, has_keys: bool = False) -> None:
        self.numbers, self.has_keys = np.asarray(numbers), has_keys

    def search(self, queries: Any, k: int) -> Any:
        assert isinstance(queries, np.ndarray)
        assert queries.dtype == np.float32
        if self.has_keys:
            self.keys = self.numbers.astype(np.uint64)
            return self
        return np.zeros(self.numbers.shape, np.float32), self.numbers


def test_recall() -> None:
    """Catches a share of the wrong total, −1 that counts, and an item that counts twice."""
    gallery = torch.tensor([[5.0], [4.0], [3.0], [3.0], [1.0]])
    queries = torch.ones(2, 1)
    for numbers, expected in (
        ([[0, 1, 2], [2, 1, 0]], 1.0),
        ([[0, 1, 3], [0, 1, 2]], 1.0),  # item 3 is equal to item 2
        ([[0, 1, 4], [0, 1, 2]], 5 / 6),
        ([[0, 0, 0], [-1, -1, -1]], 1 / 6),
        ([[0, 1], [0, 1]], 4 / 6),
    ):
        assert recall_of(Answer(numbers), queries, gallery, 3) == pytest.approx(expected)
    assert recall_of(Answer([[0], [0]], has_keys=True), queries, gallery.numpy(), 1) == 1.0
    # Five items can be found, however many are asked for.
    assert recall_of(Answer([[0, 1, 2, 3, 4, -1]] * 2), queries, gallery, 6) == 1.0


def test_recall_of_another_metric() -> None:
    """Catches exact scores of another metric than that of the index or of the Gallery."""
    gallery, queries = torch.randn(100, 8), torch.randn(20, 8)
    for metric in ("inner_product", "cosine", "l2"):
        index = Answer(topk(queries, gallery, 5, metric=metric).indices)
        assert recall_of(index, queries, gallery, 5, metric=metric) == 1.0
        assert recall_of(index, queries, Gallery(gallery, metric=metric), 5) == 1.0
        other = "l2" if metric == "inner_product" else "inner_product"
        assert recall_of(index, queries, gallery, 5, metric=other) < 1.0
