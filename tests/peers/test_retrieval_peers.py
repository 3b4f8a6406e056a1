"""Search beside faiss and usearch, and galleries of pyarrow, datasets and safetensors."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peer_cases import needs
from torch import Tensor

from mmcore.retrieval import Gallery, TopK, open_features, recall_of, to_faiss, topk

METRICS = ("inner_product", "cosine", "l2")


def features() -> tuple[Tensor, Tensor, TopK]:
    queries, gallery = torch.randn(20, 32), torch.randn(500, 32)
    return queries, gallery, topk(queries, gallery, 5)


def check(queries: Tensor, gallery: Any, expected: TopK) -> None:
    found = topk(queries, gallery, 5)
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores, expected.scores)


@needs("faiss")
@pytest.mark.parametrize("metric", METRICS)
def test_faiss(metric: str) -> None:
    """Catches an export of other rows, and indices that differ from those of an exact index."""
    queries, gallery, _ = features()
    index = to_faiss(gallery, metric)
    assert index.ntotal == 500
    of_index = queries if metric != "cosine" else torch.nn.functional.normalize(queries, dim=1)
    _, found = index.search(of_index.numpy(), 5)
    assert np.array_equal(found, topk(queries, gallery, 5, metric=metric).indices)
    assert recall_of(index, queries, gallery, 5, metric=metric) == 1.0
    assert to_faiss(Gallery(gallery, metric=metric)).ntotal == 500
    assert to_faiss(iter(gallery.split(99)), metric).ntotal == 500


@needs("faiss")
def test_recall_of_an_approximate_index() -> None:
    """Catches a recall of 1 for whatever faiss returns."""
    faiss = import_module("faiss")
    queries, gallery, _ = features()
    index = faiss.IndexIVFFlat(faiss.IndexFlatIP(32), 32, 20, faiss.METRIC_INNER_PRODUCT)
    index.train(gallery.numpy())
    index.add(gallery.numpy())
    recalls = []
    for index.nprobe in (1, 4, 20):
        recalls.append(recall_of(index, queries, gallery, 5))
    assert recalls == sorted(recalls)
    assert recalls[0] < recalls[2] == 1.0


@needs("usearch")
def test_usearch() -> None:
    """Catches an index whose answer is an object with keys."""
    usearch = import_module("usearch.index")
    queries, gallery, _ = features()
    index = usearch.Index(ndim=32, metric="l2sq", dtype="f32")
    index.add(np.arange(500), gallery.numpy())
    assert recall_of(index, queries, gallery, 5, metric="l2") > 0.9


@needs("pyarrow")
def test_pyarrow(tmp_path: Path) -> None:
    """Catches slices, chunks or files of Arrow that are read from another row."""
    pa, parquet = import_module("pyarrow"), import_module("pyarrow.parquet")
    queries, gallery, expected = features()
    flat = pa.array(gallery.numpy().reshape(-1))
    fixed = pa.FixedSizeListArray.from_arrays(flat, 32)
    variable = pa.array(list(gallery.numpy()), type=pa.list_(pa.float32()))
    padded = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(32 * 510, "f")), 32)
    padded = pa.concat_arrays([padded.slice(0, 7), fixed, padded.slice(3, 3)]).slice(7, 500)
    tensors = pa.FixedShapeTensorArray.from_numpy_ndarray(gallery.numpy())
    table = pa.table({"id": pa.array(range(500)), "embedding": fixed})
    parquet.write_table(table, tmp_path / "g.parquet", row_group_size=60)
    for source in (
        fixed, variable, padded, tensors, pa.chunked_array([fixed.slice(0, 77), fixed.slice(77)]),
        table, table.to_batches()[0], tmp_path / "g.parquet",
        parquet.ParquetFile(tmp_path / "g.parquet"), open_features(table, column="embedding"),
    ):  # fmt: skip
        check(queries, source, expected)
    column = open_features(tmp_path / "g.parquet")
    assert repr(column) == "column 'embedding', 500 rows"
    check(queries, column, expected)
    check(queries, column, expected)


@needs("pyarrow")
def test_pyarrow_faults(tmp_path: Path) -> None:
    """Catches null that becomes a number, vectors of several widths, and a column by guess."""
    pa = import_module("pyarrow")
    numbers = pa.list_(pa.float32())
    queries = torch.ones(1, 2)
    (tmp_path / "cut.parquet").write_bytes(b"PAR1 and no more")
    two = pa.table({name: pa.array([[1.0, 2.0]], type=numbers) for name in "ab"})
    for source, message in (
        (pa.array([[1.0, 2.0], None], type=numbers), "a vector in every row, got none in row 1"),
        (pa.array([[1.0, 2.0], [1.0, None]], type=numbers), "got null in row 1"),
        (pa.array([[1.0, 2.0], [1.0]], type=numbers), "got 2 in row 0 and 1 in row 1"),
        (pa.array([1.0, 2.0]), "must have vectors, lists of numbers, got double"),
        (two, r"one column of vectors, got \['a', 'b'\]: choose one by .*open_features"),
        (tmp_path / "cut.parquet", "is no Parquet file, or is cut short"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            topk(queries, source, 1)
    with pytest.raises(ValueError, match=r"column must be one of \['a', 'b'\], got 'c'"):
        open_features(two, column="c")


@needs("datasets")
def test_datasets() -> None:
    """Catches a dataset that is read in the order of its file, not in its own, or all at once."""
    datasets = import_module("datasets")
    queries, gallery, expected = features()
    names = [f"row {i}" for i in range(500)]
    types = {
        "name": datasets.Value("string"),
        "embedding": datasets.List(datasets.Value("float32")),
    }
    made = datasets.Dataset.from_dict(
        {"name": names, "embedding": gallery.tolist()}, features=datasets.Features(types)
    )
    order = torch.randperm(500)
    shuffled = datasets.Dataset.from_dict(
        {"embedding": gallery[order].tolist()},
        features=datasets.Features({"embedding": types["embedding"]}),
    )
    for source in (
        made, made["embedding"], shuffled.select(order.argsort().tolist()),
        made.to_iterable_dataset(num_shards=3), open_features(made, column="embedding"),
    ):  # fmt: skip
        check(queries, source, expected)
    with pytest.raises(TypeError, match="must be one split of 'train', got DatasetDict"):
        topk(queries, datasets.DatasetDict(train=made), 5)


@needs("safetensors")
def test_safetensors(tmp_path: Path) -> None:
    """Catches a file that the package reads otherwise than we write it, and the other way."""
    package = import_module("safetensors.torch")
    queries, gallery, expected = features()
    package.save_file({"odd": torch.ones(3).bool(), "x": gallery}, tmp_path / "a.safetensors")
    check(queries, tmp_path / "a.safetensors", expected)
    halves = gallery.bfloat16()
    package.save_file({"x": halves, "ids": torch.arange(3)}, tmp_path / "b.safetensors")
    assert torch.equal(open_features(tmp_path / "b.safetensors"), halves)
    bias = torch.randn(500)
    Gallery(halves, metric="l2", bias=bias).save(tmp_path / "g.safetensors")
    found = package.load_file(tmp_path / "g.safetensors")
    assert torch.equal(found["features"], halves)
    assert torch.equal(found["bias"], bias.double())
