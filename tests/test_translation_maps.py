"""What a fitted map does: rows of every kind, files, and what it refuses."""

from __future__ import annotations

import contextlib
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from translation_cases import KINDS, assert_close, sides

from mmcore.translation import LinearMap, fit_map, rows


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 30 rows at a time."""
    monkeypatch.setattr(rows, "PIECE_BYTES", 8 * 20 * 30)


def test_inverse_of_a_rectangular_procrustes_map() -> None:
    """Catches an inverse that does not undo a map into more dimensions, or that leaves the
    nearest rows where dimensions were dropped.
    """
    x, y = sides(x_width=5, y_width=9)
    wider = fit_map(x, y, "procrustes")
    assert_close(wider.inverse().apply(wider.apply(x)), x)
    narrower = fit_map(y, x, "procrustes")
    assert_close(narrower.apply(narrower.inverse().apply(x)), x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_dtypes_of_tensors(dtype: torch.dtype) -> None:
    """Catches sums in the dtype of the rows, and results in another dtype than theirs."""
    x, y = (side.to(dtype) for side in sides())
    found = fit_map(x, y)
    assert found.x_weight.equal(fit_map(x.double(), y.double()).x_weight)
    mapped = found.apply(x)
    assert mapped.dtype == dtype
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(mapped.double(), found.apply(x.double()), rtol=eps, atol=20 * eps)
    assert fit_map(x.double(), y).x_weight.equal(found.x_weight)


def test_arrays_of_numpy(tmp_path: Path) -> None:
    """Catches an array that comes back as a tensor, and files that cannot be read in place."""
    x, y = (side.numpy() for side in sides())
    expected = fit_map(*sides_of(x, y))
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    for given in (x, mapped, x.astype(">f8"), x[:, ::-1][:, ::-1], np.asfortranarray(x)):
        found = fit_map(given, y)
        assert found.x_weight.equal(expected.x_weight)
        result = found.apply(given)
        assert type(result) is np.ndarray
        np.testing.assert_array_equal(result, expected.apply(torch.from_numpy(x)).numpy())
    assert expected.apply(x.astype(np.float32)).dtype == np.float32


def sides_of(x: np.ndarray, y: np.ndarray) -> tuple[Tensor, Tensor]:
    return torch.from_numpy(x), torch.from_numpy(y)


def test_apply_is_differentiable_and_keeps_rows_apart() -> None:
    """Catches a result without a graph, and NaN of one row in another."""
    x, y = sides()
    found = fit_map(x.requires_grad_(), y)
    found.apply(x).sum().backward()
    assert x.grad is not None
    assert_close(x.grad, found.x_weight.sum(1).expand_as(x))
    broken = x.detach().clone()
    broken[3, 0] = torch.nan
    is_nan = found.apply(broken).isnan().any(1)
    assert is_nan.nonzero().tolist() == [[3]]
    assert found.apply(x[:0]).shape == (0, 8)


@pytest.mark.parametrize("kind", KINDS)
def test_a_saved_map_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    """Catches an array that is rounded, left out or swapped."""
    x, y = sides()
    found = fit_map(x, y, kind)
    found.save(tmp_path / "map.npz")
    loaded = LinearMap.load(str(tmp_path / "map.npz"))
    for name, value in vars(found).items():
        other = getattr(loaded, name)
        assert other.equal(value) if isinstance(value, Tensor) else other == value
    assert repr(loaded) == repr(found)
    assert [path.name for path in tmp_path.iterdir()] == ["map.npz"]


@pytest.mark.parametrize("kind", ["ridge", "cca"])
def test_a_damaged_file_never_gives_another_map(kind: str, tmp_path: Path) -> None:
    """Catches a changed or missing byte that is not noticed, or that ends in another error."""
    x, y = sides(20, 3, 2)
    path = tmp_path / "map"
    found = fit_map(x, y, kind)
    found.save(path)
    content = path.read_bytes()
    damaged = [content[:size] for size in range(0, len(content), 40)]
    for place in range(0, len(content), 3):
        flipped = bytearray(content)
        flipped[place] ^= 1 << place % 8
        damaged.append(bytes(flipped))
    for each in damaged:
        path.write_bytes(each)
        with contextlib.suppress(ValueError):
            loaded = LinearMap.load(path)
            # The byte says nothing, such as one of a date.
            assert loaded.x_weight.equal(found.x_weight)
            assert loaded.kind == kind


@pytest.mark.parametrize("other", ["npy", "npz", "text", "empty"])
def test_other_files_are_refused(other: str, tmp_path: Path) -> None:
    """Catches a file of another kind that is taken for a map."""
    buffer = io.BytesIO()
    if other == "npy":
        np.save(buffer, np.ones(3))
    elif other == "npz":
        np.savez(buffer, x_weight=np.ones((3, 3)))
    elif other == "text":
        buffer.write(b"kind,ridge\n")
    (tmp_path / "file").write_bytes(buffer.getvalue())
    with pytest.raises(ValueError, match=r"file must be a file that LinearMap\.save wrote"):
        LinearMap.load(tmp_path / "file")
    with pytest.raises(FileNotFoundError):
        LinearMap.load(tmp_path / "absent")


def with_nan() -> Tensor:
    x = torch.ones(101, 12)
    x[70, 3] = torch.nan
    return x


X, Y = torch.ones(101, 12), torch.ones(101, 8)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: fit_map(X, Y, "lasso"), ValueError, "kind must be one of 'ridge', 'procrustes', 'cca', got 'lasso'"),
    (lambda: fit_map(X, Y[:100]), ValueError, "y must have 101 rows to match x, got 100"),
    (lambda: fit_map(X[0], Y), ValueError, "x must have 2 dimensions, got 1"),
    (lambda: fit_map(X.numpy()[0], Y), ValueError, "x must have 2 dimensions, got 1"),
    (lambda: fit_map(X[:, :0].numpy(), Y), ValueError, "x must have at least 1 column, got shape (101, 0)"),
    (lambda: fit_map(X, Y.int()), TypeError, "y must be of a floating-point dtype, got int32"),
    (lambda: fit_map(X, Y.int().numpy()), TypeError, "y must be of a floating-point dtype, got int32"),
    (lambda: fit_map(with_nan(), Y), ValueError, "x must be finite, got nan in row 70, column 3"),
    (lambda: fit_map(X, torch.full_like(Y, torch.inf)), ValueError, "y must be finite, got inf in row 0, column 0"),
    (lambda: fit_map(X.double() * 1e200, Y, centre=False), ValueError, "x and y must have products of columns that float64 holds"),
    (lambda: fit_map(X, Y, ridge=-1), ValueError, "ridge must be finite and at least 0, got -1"),
    (lambda: fit_map(X, Y, ridge=True), TypeError, "ridge must be a number, got bool"),
    (lambda: fit_map(X, Y, centre=1), TypeError, "centre must be True or False, got int"),
    (lambda: fit_map(X, Y, components=3), ValueError, 'components must be None for kind "ridge", got 3'),
    (lambda: fit_map(*sides(), "cca", components=9), ValueError, "components must be from 1 to 8"),
    (lambda: fit_map(*sides(), "cca", components=2.0), TypeError, "components must be an integer, got float"),
    (lambda: fit_map(X, [Y]), TypeError, "x and y must be tensors or arrays, or both iterables of pieces, got Tensor and list"),
    (lambda: fit_map(3, 4), TypeError, "x and y must be tensors or arrays"),
    (lambda: fit_map("rows", [Y]), TypeError, "x and y must be tensors or arrays"),
    (lambda: fit_map([X, X], [Y]), ValueError, "y must have as many pieces as x, got only 1"),
    (lambda: fit_map([X], [Y, Y]), ValueError, "y must have as many pieces as x, which has 1; got more"),
    (lambda: fit_map([X, X[:, 1:]], [Y, Y]), ValueError, "x[1] must have 12 columns as the pieces before it, got 11"),
    (lambda: fit_map([X, X[1:]], [Y, Y]), ValueError, "y[1] must have 100 rows to match x[1], got 101"),
    (lambda: fit_map([X, with_nan()], [Y, Y]), ValueError, "x[1] must be finite, got nan in row 70"),
    (lambda: fit_map([], []), ValueError, "x and y must have at least 2 rows to be centred, got 0"),
    (lambda: fit_map([[1.0]], [[2.0]]), TypeError, "x[0] must be a torch tensor, a NumPy array or an array with __dlpack__, got list"),
    (lambda: fit_map(X, Y).apply(Y), ValueError, "x must have 12 columns to match side 'x' of the map, got 8"),
    (lambda: fit_map(X, Y).apply([[1.0]]), TypeError, "x must be a torch tensor"),
    (lambda: fit_map(X, Y).apply(X, side="z"), ValueError, "side must be one of 'x', 'y', got 'z'"),
    (lambda: fit_map(X, Y).apply(Y, side="y"), ValueError, 'side must be "x" for a map of kind "ridge", got "y"'),
    (lambda: fit_map(X, Y).apply(X, power=1), ValueError, 'power must be 0 for a map of kind "ridge"'),
    (lambda: fit_map(X, Y).inverse(), ValueError, "fit the other direction, fit_map(y, x)"),
    (lambda: fit_map(*sides(), "cca").inverse(), ValueError, 'has no inverse: map both sides into the shared space'),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_bad_input(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    """Catches bad input that is not refused, or with a message that does not name it."""
    with pytest.raises(error, match=re.escape(message)):
        call()
