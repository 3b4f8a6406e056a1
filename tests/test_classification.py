"""Classes by prompts and by neighbours, against plain PyTorch over whole matrices."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.analysis import features, knn_classify, neighbours, zero_shot_classify


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 30 rows at a time."""
    monkeypatch.setattr(features, "PIECE_BYTES", 8 * 12 * 30)
    monkeypatch.setattr(neighbours, "PIECE_BYTES", 8 * 5 * 30)


def prompts_of(classes: int = 7, prompts: int = 30, width: int = 12) -> tuple[Tensor, Tensor]:
    """Prompts of unequal lengths, classes in any order, each at least once."""
    prompt_class = torch.cat([torch.arange(classes), torch.randint(classes, (prompts - classes,))])
    lengths = torch.rand(prompts, 1) + 0.5
    return torch.randn(prompts, width) * lengths, prompt_class[torch.randperm(prompts)]


def plain_probabilities(x: Tensor, prompts: Tensor, classes: Tensor, scale: float) -> Tensor:
    """As the docstring writes it, float64."""
    units = F.normalize(prompts.double())
    weight = torch.stack([units[classes == c].mean(0) for c in range(int(classes.max()) + 1)])
    return (scale * F.normalize(x.double()) @ F.normalize(weight).T).softmax(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scale", [0.0, 3.0, 100.0])
def test_zero_shot_formula(dtype: torch.dtype, scale: float) -> None:
    """Catches prompts that weigh by their length, a softmax over the best alone, and features of
    16 bits whose products are rounded.
    """
    x = (3 * torch.randn(101, 12)).to(dtype)
    prompts, classes = prompts_of()
    found = zero_shot_classify(x, prompts.to(dtype), classes, scale=scale, k=3)
    expected = plain_probabilities(x, prompts.to(dtype), classes, scale)
    cosines = plain_probabilities(x, prompts.to(dtype), classes, 1.0)
    assert found.classes.equal(cosines.sort(dim=1, descending=True, stable=True).indices[:, :3])
    wide = dtype if dtype == torch.float64 else torch.float32
    assert found.probabilities.dtype == wide
    tolerance = 1e-10 if dtype == torch.float64 else 5e-5
    picked = expected.gather(1, found.classes)
    torch.testing.assert_close(found.probabilities.double(), picked, rtol=0, atol=tolerance)


def test_probabilities_of_all_classes() -> None:
    """Catches probabilities that do not add up to 1."""
    prompts, classes = prompts_of()
    found = zero_shot_classify(torch.randn(50, 12), prompts, classes, k=7)
    torch.testing.assert_close(found.probabilities.sum(1), torch.ones(50), rtol=0, atol=1e-4)
    assert (found.probabilities.diff(dim=1) <= 0).all()


def test_zero_shot_without_a_winner() -> None:
    """Catches ties that go to another than the lower class, and NaN of one row in others."""
    prompts, classes = torch.eye(4)[[2, 0, 0, 1]], torch.tensor([1, 0, 2, 3])
    x = torch.tensor([[1.0, 0, 0, 0], [0, 0, 0, 0], [torch.nan, 0, 0, 0], [1, 1, 1, 0]])
    found = zero_shot_classify(x, prompts, classes, scale=1.0, k=4)
    assert found.classes.tolist() == [[0, 2, 1, 3], [0, 1, 2, 3], [-1] * 4, [0, 1, 2, 3]]
    assert found.probabilities[1].tolist() == pytest.approx([0.25] * 4)
    assert found.probabilities.isnan().all(1).tolist() == [False, False, True, False]
    empty = zero_shot_classify(x[:0], prompts, classes, k=2)
    assert empty.classes.shape == empty.probabilities.shape == (0, 2)


def plain_votes(
    x: Tensor, train: Tensor, labels: Tensor, k: int, temperature: float
) -> tuple[Tensor, Tensor]:
    """As the docstring writes it, float64."""
    cosines = F.normalize(x.double()) @ F.normalize(train.double()).T
    nearest, index = (part[:, :k] for part in cosines.sort(dim=1, descending=True, stable=True))
    votes = torch.zeros(len(x), int(labels.max()) + 1, dtype=torch.float64)
    votes.scatter_add_(1, labels[index], (nearest / temperature).exp())
    shares, classes = (votes / votes.sum(1, keepdim=True)).max(1)
    return classes, shares


@pytest.mark.parametrize("k", [1, 5, 20, 60])
@pytest.mark.parametrize("temperature", [0.07, 1.0])
def test_knn_formula(k: int, temperature: float) -> None:
    """Catches votes without weights, neighbours that are lost between pieces, k beyond what there
    is.
    """
    train, x = torch.randn(60, 12), 2 * torch.randn(101, 12)
    labels = torch.randint(4, (60,)) * 3
    classes, shares = knn_classify(x, train, labels, k=k, temperature=temperature)
    expected, expected_shares = plain_votes(x, train, labels, k, temperature)
    assert classes.equal(expected)
    torch.testing.assert_close(shares, expected_shares)
    more = knn_classify(x, train, labels, k=k + 60, temperature=temperature)
    assert more.classes.equal(plain_votes(x, train, labels, 60, temperature)[0])


def test_knn_without_a_winner() -> None:
    """Catches equal votes that go to another than the lower class, an overflow where the
    temperature is small, and votes for rows with NaN.
    """
    train, labels = torch.eye(3)[[0, 0, 1, 1, 2]], torch.tensor([4, 2, 1, 1, 0])
    x = torch.tensor([[1.0, 0, 0], [1, 1, 0], [torch.nan, 0, 0], [0, 0, 0]])
    found = knn_classify(x, train, labels, k=4, temperature=1e-4)
    assert found.classes.tolist() == [2, 1, -1, 1]
    assert found.shares.nan_to_num(-1).tolist() == [0.5, 0.5, -1, 0.5]
    nobody = knn_classify(x, train[:0], labels[:0])
    assert nobody.classes.tolist() == [-1] * 4
    assert nobody.shares.isnan().all()
    assert knn_classify(x[:0], train, labels).classes.shape == (0,)


def test_equal_votes_have_equal_bits() -> None:
    """Catches sums in another order for another class, which decide by a rounding."""
    x = torch.randn(50, 12)
    half = torch.randn(31, 12)
    train = torch.stack([half, half], 1).flatten(0, 1)  # every example twice
    labels = torch.tensor([1, 0]).repeat(31)
    found = knn_classify(x, train, labels, k=22)
    assert not found.classes.any()
    assert ((found.shares - 0.5).abs() < 1e-12).all()


def test_arrays_and_files(tmp_path: Path) -> None:
    """Catches results of another kind than the features."""
    x, train = torch.randn(70, 12).numpy(), torch.randn(60, 12).numpy()
    labels = np.arange(60, dtype=np.int32) % 5
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    prompts, classes = (each.numpy() for each in prompts_of())
    calls = [
        lambda x: knn_classify(x, train, labels),
        lambda x: zero_shot_classify(x, prompts, classes),
    ]
    for call in calls:
        for part, other in zip(call(mapped), call(x), strict=True):
            assert type(part) is np.ndarray
            np.testing.assert_array_equal(part, other)


X, TRAIN, LABELS = torch.ones(9, 12), torch.ones(6, 12), torch.arange(6)
NOT_FINITE = torch.tensor([[1.0], [torch.inf]]).expand(2, 12)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: zero_shot_classify(X[0], TRAIN, LABELS), ValueError, "features must have 2 dim"),
    (lambda: zero_shot_classify(X, TRAIN[:, 1:], LABELS), ValueError, "prompts must have 12 col"),
    (lambda: zero_shot_classify(X, TRAIN, LABELS[1:]), ValueError, "prompt_class must have shape"),
    (lambda: zero_shot_classify(X, TRAIN, LABELS + 1), ValueError, "got none for 0"),
    (lambda: zero_shot_classify(X, TRAIN, LABELS - 1), ValueError, "at least 0, got -1"),
    (lambda: zero_shot_classify(X, TRAIN[:0], LABELS[:0]), ValueError, "at least 1 row"),
    (lambda: zero_shot_classify(X, NOT_FINITE, LABELS[:2]), ValueError, "got NaN or inf in row 1"),
    (lambda: zero_shot_classify(X, TRAIN, LABELS, k=7), ValueError, "k must be from 1 to 6, got 7"),
    (lambda: zero_shot_classify(X, TRAIN, LABELS, scale=-1), ValueError, "scale must be finite"),
    (lambda: zero_shot_classify([[1.0]], TRAIN, LABELS), TypeError, "features must be a torch"),
    (lambda: knn_classify(X, TRAIN, LABELS[1:]), ValueError, "labels must have shape (6,)"),
    (lambda: knn_classify(X, TRAIN, LABELS - 1), ValueError, "labels must be at least 0, got -1"),
    (lambda: knn_classify(X, TRAIN, LABELS / 2), TypeError, "labels must be of an integer dtype"),
    (lambda: knn_classify(X, TRAIN, LABELS, k=0), ValueError, "k must be from 1"),
    (lambda: knn_classify(X, TRAIN, LABELS, temperature=0), ValueError, "temperature must be"),
    (lambda: knn_classify(X.int(), TRAIN, LABELS), TypeError, "features must be of a floating"),
    (lambda: knn_classify(X, TRAIN[0], LABELS), ValueError, "train must have 2 dimensions"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Catches bad input that is not refused, or with a message that does not name it."""
    with pytest.raises(error, match=re.escape(message)):
        call()
