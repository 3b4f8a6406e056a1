"""A Gallery, packed once, finds what its features do; its file notices what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from mmcore.retrieval import (
    Gallery,
    TopK,
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


def check_equal(found: TopK, expected: TopK) -> None:
    assert np.array_equal(np.asarray(found.indices), np.asarray(expected.indices))
    assert np.array_equal(np.asarray(found.scores), np.asarray(expected.scores), equal_nan=True)


@pytest.mark.parametrize("metric", ["inner_product", "cosine", "l2"])
def test_a_prepared_gallery(
    best: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str
) -> None:
    """Catches a packed gallery, or one from its file, that finds something else."""
    monkeypatch.setattr("mmcore.retrieval.prepared.ROWS_OF_A_CHUNK", 128)
    queries, features = torch.randn(20, 40), torch.randn(1000, 40)
    bias, group = torch.randn(1000), torch.arange(1000) % 7
    own = torch.arange(20) % 7
    gallery = Gallery(features, metric=metric, bias=bias, group=group)
    expected = topk(
        queries, features, K, metric=metric, gallery_bias=bias, query_group=own, gallery_group=group
    )
    check_equal(topk(queries, gallery, K, query_group=own), expected)
    gallery.save(tmp_path / "g")
    loaded = Gallery.load(tmp_path / "g")
    assert repr(loaded) == repr(gallery)
    assert repr(gallery) == (
        f"Gallery(1000 × 40, float32, {metric}, packed, with a bias, with a group)"
    )
    assert len(loaded) == 1000
    check_equal(topk(queries, loaded, K, query_group=own), expected)
    check_equal(
        topk(queries, loaded, K),
        topk(queries, features, K, metric=metric, gallery_bias=bias),
    )
    assert torch.equal(safetensors_file.read(tmp_path / "g").tensors["features"], features)


def test_a_gallery_of_a_file_stays_there(tmp_path: Path, queries: Tensor, features: Tensor) -> None:
    """Catches a file that is copied into memory."""
    np.save(tmp_path / "g.npy", features.numpy())
    gallery = Gallery(tmp_path / "g.npy", backend="reference")
    assert gallery.prepared is None
    check_equal(topk(queries, gallery, K), topk(queries, features, K))


def test_files_that_are_no_gallery(tmp_path: Path, features: Tensor) -> None:
    """Catches a damaged byte that changes results, and a foreign file that is believed."""
    path = tmp_path / "g"
    Gallery(features).save(path)
    whole = bytearray(path.read_bytes())
    whole[-100] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ValueError, match=r"is damaged: the bytes of .* have changed"):
        Gallery.load(path)
    path.write_bytes(whole[:-100])
    with pytest.raises(ValueError, match="is cut short"):
        Gallery.load(path)
    safetensors_file.write(path, {"features": features}, {})
    with pytest.raises(ValueError, match=r"must be written by Gallery.save"):
        Gallery.load(path)
    metadata = {"kind": "mmcore.retrieval.Gallery", "version": "9"}
    safetensors_file.write(path, {"features": features}, metadata)
    with pytest.raises(ValueError, match="must be of version 1, got 9: save it again"):
        Gallery.load(path)
    safetensors_file.write(path, {}, metadata | {"version": "1"})
    with pytest.raises(ValueError, match="is damaged"):
        Gallery.load(path)


def test_an_interrupted_save_leaves_no_half_of_a_file(
    tmp_path: Path, features: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a file that Ctrl-C leaves half written where a whole one was."""
    path = tmp_path / "g"
    Gallery(features).save(path)
    before = path.read_bytes()

    def stopped(tensor: Tensor) -> list[memoryview]:
        raise KeyboardInterrupt

    gallery = Gallery(features[:10], backend="reference")
    monkeypatch.setattr(safetensors_file, "bytes_of", stopped)
    monkeypatch.setattr("mmcore.retrieval.prepared._checksum", lambda value: "")
    with pytest.raises(KeyboardInterrupt):
        gallery.save(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]
