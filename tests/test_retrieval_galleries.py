"""Every kind of gallery gives what an array gives, and faults of files and chunks are named."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcore.retrieval import (
    TopK,
    galleries,
    open_features,
    safetensors_file,
    topk,
)

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


def test_files(tmp_path: Path, queries: Tensor, features: Tensor) -> None:
    """Catches a file that is read otherwise than the array it was made of."""
    expected = topk(queries, features, K)
    for name, array in (("c", features.numpy()), ("f", np.asfortranarray(features.numpy()))):
        np.save(tmp_path / f"{name}.npy", array)
        check_equal(topk(queries, tmp_path / f"{name}.npy", K), expected)
        check_equal(topk(queries, str(tmp_path / f"{name}.npy"), K), expected)
    tensors = {"ids": torch.arange(ROWS), "features": features, "bias": torch.ones(ROWS)}
    safetensors_file.write(tmp_path / "g.safetensors", tensors, {})
    check_equal(topk(queries, tmp_path / "g.safetensors", K), expected)
    np.save(tmp_path / "empty.npy", features[:0].numpy())
    assert (topk(queries, tmp_path / "empty.npy", K).indices == -1).all()


def test_a_safetensors_file_of_several_matrices(
    tmp_path: Path, queries: Tensor, features: Tensor
) -> None:
    """Catches one of several matrices that is taken without being asked for."""
    path = tmp_path / "g.safetensors"
    halves = features.bfloat16()
    safetensors_file.write(path, {"images": features, "texts": halves}, {"made": "here"})
    with pytest.raises(ValueError, match=r"one matrix .* got \['images', 'texts'\]: .*column="):
        topk(queries, path, K)
    with pytest.raises(ValueError, match="one of 'images', 'texts', got 'audio'"):
        open_features(path, column="audio")
    found = topk(queries.bfloat16(), open_features(path, column="texts"), K)
    check_equal(found, topk(queries.bfloat16(), halves, K))


def cut(path: Path, size: int) -> Path:
    short = path.with_name(f"short{path.suffix}")
    short.write_bytes(path.read_bytes()[:size])
    return short


def test_a_file_that_is_cut_short_is_named(
    tmp_path: Path, queries: Tensor, features: Tensor
) -> None:
    """Catches garbage behind the end of a file, and an error that does not say what is wrong."""
    np.save(tmp_path / "g.npy", features.numpy())
    safetensors_file.write(tmp_path / "g.safetensors", {"features": features}, {})
    for size, message in ((5000, r"cut short: shape \(300, 16\) of float32 takes 19328 bytes"),
                          (60, "cut short or damaged"), (3, "no .npy file")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            topk(queries, cut(tmp_path / "g.npy", size), K)
    for size, message in ((5000, "'features' ends at byte 19200"), (60, "cut short"),
                          (3, "no file of safetensors")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            topk(queries, cut(tmp_path / "g.safetensors", size), K)
    (tmp_path / "other.npy").write_text("not an array")
    with pytest.raises(ValueError, match=r"no \.npy file"):
        topk(queries, tmp_path / "other.npy", K)
    with pytest.raises(ValueError, match=r"must end in \.npy, \.safetensors or"):
        topk(queries, tmp_path / "g.pt", K)
    with pytest.raises(FileNotFoundError):
        topk(queries, tmp_path / "missing.npy", K)


def test_a_damaged_header_is_named(tmp_path: Path) -> None:
    """Catches a header that is believed: a shape that is not that of the bytes, or no JSON."""
    path = tmp_path / "g.safetensors"
    safetensors_file.write(path, {"features": torch.ones(4, 4)}, {})
    whole = path.read_bytes()
    for old, new, message in (
        (b"[4, 4]", b"[4, 5]", r"the shape \(4, 5\) of F32 in 64 bytes"),
        (b'{"__meta', b"!!!!!!!!", "its header is no JSON"),
        (b'"shape"', b'"scape"', "no place of 'features'"),
    ):
        path.write_bytes(whole.replace(old, new))
        with pytest.raises(ValueError, match=message):
            safetensors_file.read(path)


def test_chunks(small_chunks: None, queries: Tensor, features: Tensor) -> None:
    """Catches a generator, a list or arrays of NumPy that are not searched as the whole is."""
    expected = topk(queries, features, K)
    pieces = features.split(77)
    for chunks in (pieces, iter(pieces), [piece.numpy() for piece in pieces]):
        check_equal(topk(queries, chunks, K), expected)


def test_a_buffer_that_is_filled_again(queries: Tensor, features: Tensor) -> None:
    """Catches small chunks that are kept without a copy until they are joined."""

    def reader() -> Iterator[Tensor]:
        buffer = torch.empty(30, WIDTH)
        for piece in features.split(30):
            yield buffer.copy_(piece)

    check_equal(topk(queries, reader(), K), topk(queries, features, K))


def test_chunks_that_change_are_named(queries: Tensor, features: Tensor) -> None:
    """Catches a chunk of another width or dtype that is searched, or an error without its place."""
    for bad, message in (
        (torch.ones(2, 9), "16 columns to match queries and the chunks before, got 9"),
        (torch.ones(2, 16).half(), "dtype float32 .* got float16: convert the queries to float16"),
        (torch.ones(16), "2 dimensions, got 1"),
    ):
        chunks = [features[:100], features[100:200], bad]
        with pytest.raises(
            (TypeError, ValueError), match=f"chunk 2 of gallery, from row 200, must have {message}"
        ):
            topk(queries, chunks, K)
    with pytest.raises(
        TypeError, match=r"chunk 0 of gallery, .* must be a torch tensor.* got list"
    ):
        topk(queries, [[1.0], [2.0]], K)


def test_biases_and_groups_of_chunks(small_chunks: None, queries: Tensor, features: Tensor) -> None:
    """Catches a bias or a group that belongs to another row when the gallery is read by chunks."""
    bias, group = torch.randn(ROWS), torch.arange(ROWS) % 4
    own = torch.arange(len(queries)) % 4
    expected = topk(queries, features, K, gallery_bias=bias, query_group=own, gallery_group=group)
    sizes = [100, 1, 150, 49]
    for biases, groups in (
        (bias, group), (bias.split(sizes), iter(group.split(sizes))), (bias.numpy(), group.numpy()),
    ):  # fmt: skip
        found = topk(
            queries, features.split(sizes), K, gallery_bias=biases, query_group=own,
            gallery_group=groups,
        )  # fmt: skip
        check_equal(found, expected)


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (torch.ones(299), "a number for each row of gallery, got 299 for at least 300"),
        (torch.ones(301), r"must have shape \(300,\) to match the rows of gallery, got \(301,\)"),
        ([torch.ones(100)] * 2, "a part for each chunk, got none for chunk 2 of gallery"),
        ([torch.ones(100)] * 4, "a part for each chunk, got more"),
        ([torch.ones(99)] * 3, r"must have shape \(100,\) to match chunk 0 of gallery"),
    ],
)
def test_biases_that_do_not_fit_chunks(
    queries: Tensor, features: Tensor, bias: Any, message: str
) -> None:
    """Catches a bias that is too short or too long for what turns out to be the gallery."""
    with pytest.raises(ValueError, match=f"gallery_bias .*{message}"):
        topk(queries, iter(features.split(100)), K, gallery_bias=bias)


def test_one_chunk_is_held_while_the_next_is_made(
    small_chunks: None, queries: Tensor, features: Tensor
) -> None:
    """Catches a stream whose chunks pile up."""
    made: list[weakref.ref[Any]] = []

    def reader() -> Iterator[Any]:
        for piece in features.split(30):
            assert sum(chunk() is not None for chunk in made) <= 1
            array = piece.numpy().copy()
            made.append(weakref.ref(array))
            yield array
            del array

    topk(queries, reader(), K)
    assert len(made) == 10
