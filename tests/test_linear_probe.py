"""The linear probe: its objective in plain PyTorch, its predictions, and what it refuses."""

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

import mmcore
from mmcore.analysis import LinearProbe, features, linear_probe


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 30 rows at a time where rows are copied."""
    monkeypatch.setattr(features, "PIECE_BYTES", 8 * 12 * 30)


def classes_of(count: int = 3, rows: int = 200, width: int = 12) -> tuple[Tensor, Tensor]:
    """Classes that overlap, numbered 0, 2, 4, …; float64."""
    labels = torch.randint(count, (rows,))
    centres = torch.randn(count, width, dtype=torch.float64) / 2
    return centres[labels] + torch.randn(rows, width, dtype=torch.float64), 2 * labels


def objective(probe: LinearProbe, x: Tensor, labels: Tensor, l2: float) -> tuple[Tensor, Tensor]:
    """The loss as the docstring writes it, and the largest part of its gradient."""
    weight, bias = (each.clone().requires_grad_() for each in (probe.weight, probe.bias))
    target = torch.searchsorted(probe.classes, labels)
    double = 2 if len(probe.classes) == 2 else 1
    penalty = double * l2 / (2 * len(x)) * weight.square().sum()
    loss = F.cross_entropy(F.linear(x.double(), weight, bias), target) + penalty
    gradients = torch.autograd.grad(loss, [weight, bias])
    return loss.detach(), torch.stack([each.abs().max() for each in gradients]).max()


@pytest.mark.parametrize("count", [2, 3, 10])
@pytest.mark.parametrize("l2", [1e-2, 1.0, 100.0])
def test_it_is_the_minimum(count: int, l2: float) -> None:
    """Catches a penalty of another size, one on the bias, or a gradient that is not the loss's."""
    x, labels = classes_of(count)
    probe = linear_probe(x, labels, l2=l2)
    loss, gradient = objective(probe, x, labels, l2)
    assert probe.has_converged
    assert gradient < 1e-6
    assert probe.loss == pytest.approx(loss.item(), rel=1e-12)
    assert probe.classes.tolist() == [2 * label for label in range(count)]
    assert abs(probe.bias.mean()) < 1e-12


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dtypes(dtype: torch.dtype, best: str) -> None:
    """Catches sums that lose digits, or weights that are rounded to 16 bits."""
    x, labels = classes_of()
    x = x.to(dtype)
    with mmcore.backend("reference"):
        exact = linear_probe(x.double(), labels)
    found = linear_probe(x, labels)
    assert best
    assert found.has_converged
    probabilities = found.probabilities(x)
    assert probabilities.dtype == torch.float32
    expected = exact.probabilities(x.double())
    torch.testing.assert_close(probabilities.double(), expected, rtol=0, atol=1e-3)


def test_units_and_correlations_of_columns_cost_no_iterations() -> None:
    """Catches weights that are not preconditioned, which take thousands of iterations here."""
    x, labels = classes_of(width=12)
    ill = x @ torch.randn(12, 12).double() * torch.logspace(-3, 3, 12) + 10
    probe = linear_probe(ill, labels, max_iterations=150)
    assert probe.has_converged
    assert objective(probe, ill, labels, 1.0)[1] < 1e-4  # in units of the largest column


def test_the_same_bits_every_time() -> None:
    """Catches random starts, and state that is left from the call before."""
    x, labels = classes_of()
    first, second = (linear_probe(x.float(), labels) for _ in range(2))
    assert first.weight.equal(second.weight)
    assert first.bias.equal(second.bias)


def test_predictions() -> None:
    """Catches columns in another order than the classes, and rows that are lost between pieces."""
    x, labels = classes_of()
    probe = linear_probe(x, labels)
    logits = x @ probe.weight.T + probe.bias
    torch.testing.assert_close(probe.probabilities(x), logits.softmax(1))
    assert probe.predict(x).equal(probe.classes[logits.argmax(1)])
    share = (probe.predict(x) == labels).double().mean().item()
    assert probe.accuracy(x, labels) == share
    assert 0.6 < share < 1
    assert probe.accuracy(x, labels + 1) == 0  # classes that it has never seen


def test_rows_without_an_answer() -> None:
    """Catches a class for NaN, equal logits that go to another than the lower class, and no rows
    that end in an error.
    """
    x, labels = classes_of()
    probe = linear_probe(x, labels)
    broken = x[:4].clone()
    broken[2, 0] = torch.nan
    assert (probe.predict(broken) == -1).tolist() == [False, False, True, False]
    equal = LinearProbe(torch.zeros(3, 12), torch.zeros(3), torch.tensor([1, 4, 5]), 0.0, 1, True)
    assert equal.predict(x).unique().tolist() == [1]
    assert probe.predict(x[:0]).shape == (0,)
    assert probe.probabilities(x[:0]).shape == (0, 3)


def test_arrays_and_files(tmp_path: Path) -> None:
    """Catches arrays that are read in another order than tensors, and results of another kind."""
    x, labels = classes_of()
    np.save(tmp_path / "x.npy", x.numpy())
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    probe, expected = linear_probe(mapped, labels.numpy().astype(np.uint8)), linear_probe(x, labels)
    torch.testing.assert_close(probe.weight, expected.weight, rtol=1e-6, atol=1e-6)
    assert type(probe.predict(mapped)) is type(probe.probabilities(mapped)) is np.ndarray
    assert probe.accuracy(mapped, labels) == probe.accuracy(x, labels.numpy())


def test_without_grad_mode_and_under_autocast() -> None:
    """Catches a fit that needs the caller's grad mode, or is rounded by autocast."""
    x, labels = classes_of()
    x, expected = x.float(), linear_probe(x.float(), labels)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = linear_probe(x.requires_grad_(), labels)
        probabilities = found.probabilities(x)
    torch.testing.assert_close(probabilities, expected.probabilities(x), rtol=0, atol=1e-3)
    assert x.grad is None


def test_what_it_says_when_it_has_not_converged() -> None:
    """Catches a result that nobody can tell from one at the minimum."""
    x, labels = classes_of()
    with pytest.warns(RuntimeWarning, match="linear_probe has not converged after 2 iterations"):
        probe = linear_probe(x, labels, max_iterations=2)
    assert repr(probe) == "LinearProbe(12 → 3 classes, not converged)"
    assert not probe.has_converged
    assert probe.iterations == 2


def test_backends_agree(on_host: str) -> None:
    """Catches a backend whose log-sum-exps or gradients are others."""
    x, labels = classes_of(rows=60)
    with mmcore.backend("reference"):
        expected = linear_probe(x, labels, l2=10.0)
    found = linear_probe(x.float(), labels, l2=10.0)
    assert on_host
    torch.testing.assert_close(found.weight, expected.weight, rtol=1e-3, atol=1e-3)


def with_nan() -> Tensor:
    x = torch.ones(100, 12)
    x[70, 3] = torch.nan
    return x


X, LABELS = torch.ones(100, 12), torch.arange(100) % 2
PROBE = LinearProbe(torch.zeros(3, 12), torch.zeros(3), torch.arange(3), 0.0, 1, True)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: linear_probe(X[0], LABELS), ValueError, "features must have 2 dimensions, got 1"),
    (lambda: linear_probe(X.int(), LABELS), TypeError, "features must be of a floating-point"),
    (
        lambda: linear_probe(X.int().numpy(), LABELS),
        TypeError,
        "features must be of a floating-point",
    ),
    (lambda: linear_probe([[1.0]], LABELS), TypeError, "features must be a torch tensor"),
    (lambda: linear_probe(with_nan(), LABELS), ValueError, "got NaN or inf in row 70"),
    (lambda: linear_probe(X, LABELS[:99]), ValueError, "labels must have shape (100,) to match"),
    (lambda: linear_probe(X, LABELS - 1), ValueError, "labels must be at least 0, got -1"),
    (lambda: linear_probe(X, LABELS.float()), TypeError, "labels must be of an integer dtype"),
    (lambda: linear_probe(X, X.numpy()[:, 0]), TypeError, "labels must be of an integer dtype"),
    (lambda: linear_probe(X, [0] * 100), TypeError, "labels must be a torch tensor"),
    (lambda: linear_probe(X, LABELS * 0), ValueError, "labels must be of at least 2 classes"),
    (lambda: linear_probe(X[:0], LABELS[:0]), ValueError, "labels must be of at least 2 classes"),
    (lambda: linear_probe(X, LABELS, l2=0), ValueError, "l2 must be finite and above 0, got 0"),
    (lambda: linear_probe(X, LABELS, max_iterations=0), ValueError, "max_iterations must be from"),
    (lambda: PROBE.predict(X[:, 1:]), ValueError, "features must have 12 columns to match the"),
    (lambda: PROBE.accuracy(X, LABELS[1:]), ValueError, "labels must have shape (100,)"),
    (lambda: PROBE.accuracy(X[:0], LABELS[:0]), ValueError, "features must have at least 1 row"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Catches bad input that is not refused, or with a message that does not name it."""
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_constant_features() -> None:
    """Catches a curvature without a factor: only the bias can tell the classes' shares."""
    labels = (torch.arange(100) % 4 == 0).long()
    with mmcore.backend("reference"):
        probe = linear_probe(torch.ones(100, 12), labels)
    shares = torch.tensor([0.75, 0.25]).expand(100, 2)
    torch.testing.assert_close(probe.probabilities(X), shares, rtol=0, atol=1e-4)
