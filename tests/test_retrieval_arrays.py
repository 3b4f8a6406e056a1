"""Arrays of other libraries go in, and results come back in the queries' kind."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcore.retrieval import Gallery, TopK, merge, topk
from mmcore.retrieval.arrays import as_tensor, like


class Foreign:
    """An array of a library that torch does not know, with nothing but the protocol."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    def __dlpack__(self, **options: Any) -> Any:
        return self.tensor.__dlpack__()

    def __dlpack_device__(self) -> Any:
        return self.tensor.__dlpack_device__()

    def __array_namespace__(self) -> Any:
        return ForeignLibrary


class ForeignLibrary:
    @staticmethod
    def from_dlpack(value: Any) -> Foreign:
        return Foreign(torch.from_dlpack(value))


def example() -> tuple[Tensor, Tensor, TopK]:
    queries, gallery = torch.randn(5, 12), torch.randn(60, 12)
    return queries, gallery, topk(queries, gallery, 4)


def test_the_queries_kind_comes_out() -> None:
    """Catches tensors for a user of NumPy, and a gallery whose kind decides."""
    queries, gallery, expected = example()
    for kind, given in ((Tensor, queries), (np.ndarray, queries.numpy())):
        for items in (gallery, gallery.numpy(), Foreign(gallery)):
            found = topk(given, items, 4)
            assert type(found) is TopK
            assert all(isinstance(part, kind) for part in found)
            assert np.array_equal(np.asarray(found.indices), expected.indices)
            assert np.array_equal(np.asarray(found.scores), expected.scores)
    found = topk(Foreign(queries), gallery, 4)
    assert isinstance(found.scores, Foreign)
    assert torch.equal(found.indices.tensor, expected.indices)


def test_merge_keeps_the_kind() -> None:
    """Catches parts of NumPy that come back as tensors."""
    queries, gallery, expected = example()
    parts = [
        topk(queries.numpy(), gallery[i : i + 30], 4, first_index=i, score_dtype="float64")
        for i in (0, 30)
    ]
    found = merge(parts, 4)
    assert isinstance(found.scores, np.ndarray)
    assert np.array_equal(found.indices, expected.indices)


def test_a_gradient_is_no_obstacle() -> None:
    """Catches features of a model that would have to be detached first."""
    queries, gallery, expected = example()
    found = topk(queries.requires_grad_(), gallery.requires_grad_(), 4)
    assert torch.equal(found.indices, expected.indices)
    assert not found.scores.requires_grad


def test_a_memory_map_is_not_copied_and_not_warned_of(tmp_path: Path) -> None:
    """Catches torch's warning of memory that may not be written to, and a copy of a large file."""
    np.save(tmp_path / "a.npy", np.arange(12, dtype=np.float32).reshape(3, 4))
    array = np.load(tmp_path / "a.npy", mmap_mode="r")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tensor = as_tensor("gallery", array)
        assert as_tensor("gallery", np.broadcast_to(np.float32(1), (3, 4))).sum() == 12
    assert tensor.data_ptr() == array.ctypes.data


STRANGE = {
    "backwards": lambda a: a[::-1].copy()[::-1],
    "columns first": np.asfortranarray,
    "every other": lambda a: np.repeat(a, 2, axis=1)[:, ::2],
    "big-endian": lambda a: a.astype(">f4"),
    "a field of a record": lambda a: _field(a),
    "of length 0 behind": lambda a: a[:0],
}


def _field(array: NDArray[Any]) -> NDArray[Any]:
    records = np.zeros(array.shape, dtype=[("skipped", "i1"), ("number", "f4")])
    records["number"] = array
    return records["number"]


@pytest.mark.parametrize("name", STRANGE)
def test_layouts(name: str) -> None:
    """Catches strides or a byte order that torch does not have."""
    array = np.random.default_rng(0).normal(size=(9, 6)).astype(np.float32)
    strange = STRANGE[name](array)
    assert np.array_equal(as_tensor("x", strange).numpy(), np.asarray(strange, np.float32))
    found = topk(array, strange, 3)
    assert np.array_equal(
        found.indices, topk(array, np.ascontiguousarray(strange, "f4"), 3).indices
    )


def test_halves() -> None:
    """Catches half-precision arrays that become something else."""
    x = torch.randn(4, 8).half()
    assert np.array_equal(topk(x.numpy(), x, 2).indices, topk(x, x, 2).indices)


BAD = {
    "a list": ([[1.0, 2.0]], "queries must be .* got list: pass numpy.asarray"),
    "None": (None, "queries must be .* got NoneType"),
    "integers": (np.ones((2, 3), int), "queries must be of a floating-point dtype, got int64"),
    "text": (np.array([["a"]]), "queries must be of a dtype that torch has, got <U1"),
    "objects": (np.array([[None]]), "queries must be of a dtype that torch has, got object"),
    "a vector": (np.ones(3, np.float32), "queries must have 2 dimensions, got 1"),
    "no columns": (np.ones((3, 0), np.float32), "queries must have at least 1 column"),
}


@pytest.mark.parametrize("name", BAD)
def test_errors_name_what_came(name: str) -> None:
    """Catches an error of torch or NumPy that does not say which argument."""
    value, message = BAD[name]
    with pytest.raises((TypeError, ValueError), match=message):
        topk(value, np.ones((2, 3), np.float32), 1)


def test_an_array_that_cannot_be_shared_is_named() -> None:
    """Catches an error of a foreign library that does not say which argument."""

    class Refusing(Foreign):
        def __dlpack__(self, **options: Any) -> Any:
            raise BufferError("on another device")

    with pytest.raises(TypeError, match=r"gallery, of type Refusing, .* on another device"):
        topk(torch.ones(1, 2), Refusing(torch.ones(1, 2)), 1)


def test_a_library_without_a_way_back_gets_tensors() -> None:
    """Catches a crash after the search, where a library has no from_dlpack."""

    class Poor:
        def __dlpack__(self) -> None: ...

    result = torch.ones(2)
    assert like(Poor(), result) is result


def test_a_gallery_keeps_the_memory_of_its_array() -> None:
    """Catches features that are freed under a Gallery."""
    rows = torch.randn(50, 8)
    gallery = Gallery(rows.numpy().copy())
    assert torch.equal(topk(rows, gallery, 2).indices, topk(rows, rows, 2).indices)
