"""Triton's walk over the matrix: tiles of every proportion, in chunks, half of them, kept, copied.

Small tiles, so that a matrix of a hundred rows has many.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from pair_cases import PAIRS, SYMMETRIC_PAIRS, Vectors
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.backends.inputs import SimilarityInputs

pytest.importorskip("triton")
from mmcore.backends.triton import hopper, inputs, kept_size, launch
from mmcore.backends.triton.softmax_similarity import chunks, matrix
from mmcore.backends.triton.softmax_similarity.kept_exponentials import rows_and_numbers
from mmcore.backends.triton.tuned_tiles import ProductTile

pytestmark = pytest.mark.op


TILES = {
    "wide": ProductTile(16, 64, 16, 4, 1),
    "high": ProductTile(64, 16, 16, 4, 1),
    "copied": ProductTile(32, 64, 16, 4, 1, USES_DESCRIPTORS=True),
}
LEAN, ROOMY = 0, 2**24
# Labels alone and targets alone are parts of these.
WITHOUT_THEIR_PARTS = [
    pairs if pairs.__name__.endswith("_and_groups") else pytest.param(pairs, marks=pytest.mark.full)
    for pairs in PAIRS
]


@pytest.fixture(params=TILES, autouse=True)
def tile(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every test once per tile; a lean forward takes three blocks at a time."""
    monkeypatch.setattr(inputs, "product_tile", lambda *_: TILES[request.param])
    monkeypatch.setattr(matrix, "_recipes", {})  # those of other tiles
    monkeypatch.setattr(launch, "FEWEST_BLOCKS", 3)
    monkeypatch.setattr(hopper, "serves", lambda _: False)
    with mmcore.backend("triton"):
        yield


def unit_rows(rows: int, width: int = 24) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def softmax(
    backend: str, x: Tensor, y: Tensor | None, workspace: int, vectors: Vectors, **options: Any
) -> list[Tensor]:
    """Statistics, then gradients of a weighted sum of all of them."""
    x = x.detach().requires_grad_()
    y = x if y is None else y.detach().requires_grad_()
    scale = torch.tensor(12.0, requires_grad=True)
    leaves = [x, scale] if y is x else [x, y, scale]
    with mmcore.workspace(workspace):
        found = functional.softmax_similarity(x, y, scale, **vectors, **options, backend=backend)
        parts = [part.masked_fill(part == -torch.inf, 0) for part in found]
        weights = [torch.linspace(-1, 2, len(part), dtype=torch.float64) for part in parts]
        total = sum(((p * w).sum() for p, w in zip(parts, weights, strict=True)), torch.zeros(()))
        gradients = torch.autograd.grad(total, leaves)
    return [*(part.detach() for part in found), *gradients]


def sigmoid(
    backend: str, x: Tensor, y: Tensor | None, workspace: int, vectors: Vectors
) -> list[Tensor]:
    """Both sums, then the gradients of their difference."""
    x = x.detach().requires_grad_()
    y = x if y is None else y.detach().requires_grad_()
    scale, bias = torch.tensor(12.0, requires_grad=True), torch.tensor(-5.0, requires_grad=True)
    leaves = [x, scale, bias] if y is x else [x, y, scale, bias]
    with mmcore.workspace(workspace):
        sums = functional.sigmoid_similarity(x, y, scale, bias, **vectors, backend=backend)
        gradients = torch.autograd.grad(sums.total - sums.positive, leaves)
    return [sums.total.detach(), sums.positive.detach(), *gradients]


def check_close(ours: list[Tensor], reference: list[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(ours, reference, strict=True):
        largest = other[other.isfinite()].abs().max().item() if other.numel() else 0.0
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@pytest.mark.parametrize("workspace", [LEAN, ROOMY])
@pytest.mark.parametrize("pairs", PAIRS)
def test_two_sides(pairs: Any, workspace: int) -> None:
    x, y, vectors = unit_rows(83), unit_rows(131), pairs(83, 131)
    ours, reference = (softmax(name, x, y, workspace, vectors) for name in ("triton", "reference"))
    check_close(ours, reference)


@pytest.mark.parametrize("workspace", [LEAN, ROOMY])
@pytest.mark.parametrize("denominator", ["all", "negatives", "positives"])
@pytest.mark.parametrize("pairs", SYMMETRIC_PAIRS)
def test_half_of_a_matrix_that_is_its_own_transpose(
    pairs: Any, denominator: str, workspace: int
) -> None:
    x, vectors = unit_rows(118), pairs(118, 118)
    settings = {"columns": False, "denominator": denominator}
    ours, reference = (
        softmax(name, x, None, workspace, vectors, **settings) for name in ("triton", "reference")
    )
    check_close(ours, reference)


@pytest.mark.parametrize("pairs", SYMMETRIC_PAIRS)
def test_half_of_it_with_biases_of_its_own(pairs: Any) -> None:
    x, vectors = unit_rows(70), pairs(70, 70)
    biases = {"row_bias": torch.randn(70), "col_bias": torch.randn(70)}
    ours, reference = (
        softmax(name, x, None, LEAN, vectors, columns=False, **biases)
        for name in ("triton", "reference")
    )
    check_close(ours, reference)


@pytest.mark.parametrize("workspace", [LEAN, ROOMY])
@pytest.mark.parametrize("pairs", SYMMETRIC_PAIRS)
def test_half_of_a_sigmoid(pairs: Any, workspace: int) -> None:
    x, vectors = unit_rows(118), pairs(118, 118)
    ours, reference = (
        sigmoid(name, x, None, workspace, vectors) for name in ("triton", "reference")
    )
    check_close(ours, reference)


@pytest.mark.parametrize("pairs", WITHOUT_THEIR_PARTS)
def test_kept_exponentials_give_the_gradients_of_computed_ones(pairs: Any) -> None:
    x, y, vectors = unit_rows(300).bfloat16(), unit_rows(150).bfloat16(), pairs(300, 150)
    half = 2 * 2 * 128 * 256  # 128 rows of E, and as much for G
    lean, some, all_ = (softmax("triton", x, y, size, vectors) for size in (LEAN, half, ROOMY))
    assert kept_size.rows_of_exponentials(half, 300, 150) == 128 * 256 // 2
    for statistic in range(4):
        assert torch.equal(lean[statistic], some[statistic])
        assert torch.equal(lean[statistic], all_[statistic])
    check_close(some, lean, 2**-7)
    check_close(all_, lean, 2**-7)
    assert not torch.equal(all_[4], lean[4])


def test_no_exponentials_are_kept_without_a_backward_of_bfloat16() -> None:
    x, y, scale = torch.empty(300, 24), torch.empty(150, 24), torch.empty(())
    matrix = SimilarityInputs(x, y, scale, *[None] * 8)
    half = matrix._replace(x=x.bfloat16(), y=None, has_columns=False)
    rounded = matrix._replace(precision="medium")
    numbers = kept_size.NUMBERS
    assert kept_size.softmax_similarity(ROOMY, matrix) == numbers
    assert kept_size.softmax_similarity(ROOMY, half) == numbers
    assert kept_size.softmax_similarity(LEAN, rounded) == numbers
    whole = kept_size.softmax_similarity(ROOMY, rounded)
    rows_of_e, stored = rows_and_numbers(torch.empty(whole), 150)
    assert rows_of_e.shape == (384, 256)
    assert len(stored) == numbers


def test_memory_that_is_short_makes_chunks_smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def by_chunks(gradient: Any, needs: Any, scale: Any, size: int) -> Any:
        tried.append(size)
        if size > 64:
            raise torch.OutOfMemoryError
        return found(gradient, needs, scale, size)

    x, y = unit_rows(300), unit_rows(150)
    expected = softmax("triton", x, y, LEAN, {"target": torch.arange(300) % 150})
    found = chunks._by_chunks
    monkeypatch.setattr(chunks, "_by_chunks", by_chunks)
    ours = softmax("triton", x, y, ROOMY, {"target": torch.arange(300) % 150})
    assert tried[0] >= 300
    assert tried[-1] <= 64
    assert tried == sorted(tried, reverse=True)
    check_close(ours, expected)


def test_memory_for_not_even_a_block_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def by_chunks(*_: Any) -> Any:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(chunks, "_by_chunks", by_chunks)
    with pytest.raises(torch.OutOfMemoryError):
        softmax("triton", unit_rows(70), unit_rows(70), ROOMY, {})
