"""What may be searched: arrays, memory maps, files, tables, and iterables of chunks, as chunks.

A chunk of an array is a view of it. Of what is iterated one chunk is held while the next is made,
and small ones are joined. What lies on the CPU is moved to the device of the queries by chunks.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.retrieval import files, tables
from mmcore.retrieval.alongside import Alongside
from mmcore.retrieval.arrays import ARRAYS, as_tensor, is_array
from mmcore.retrieval.prepared import Gallery

# Rows of iterated chunks that are joined before they are searched, and most of a chunk of an array.
FEWEST_ROWS = 8192
# A chunk takes about a second, so that work can be interrupted and shows how far it is.
OPERATIONS = {"cpu": 2e11, "cuda": 2e13}
BYTES_MOVED = 64 * 2**20  # of a chunk that is copied to another device


class Chunk(NamedTuple):
    """Some rows of a gallery, on the device of the queries."""

    features: Tensor  # (m, D)
    bias: Tensor | None  # (m,) float64
    group: Tensor | None  # (m,) int64
    prepared: Tensor | None  # what the backend made of exactly these rows


class Source(NamedTuple):
    """A gallery before it is read."""

    rows: int | None  # None: known when it has been read
    array: Tensor | None  # all of it, where it is an array
    gallery: Gallery | None  # the same with what was prepared
    chunks: Iterable[object] | None  # where it is no array


def open_features(source: Any, *, column: str | None = None) -> Any:
    """A file or table of features as what `topk` reads, without reading it yet.

    `topk` takes paths and tables themselves; this function is for those with several columns.

    Args:
        source: a path that ends in .npy, .safetensors or .parquet; a pyarrow Table, RecordBatch,
            Array, ChunkedArray or ParquetFile; a dataset of Hugging Face, or a column of one.
        column: which tensor or column of several.

    Returns:
        For .npy a memory map, for .safetensors a tensor over a memory map; neither is to be written
        to. Otherwise an iterable of NumPy arrays of up to 65,536 rows.

    Raises:
        ValueError: no such column, or several and none chosen; a file that is cut short, damaged or
            of another kind. ImportError: tables need pyarrow.

    Memory:
        None before it is read; then a chunk at a time.

    Example:
        >>> import numpy as np, mmcore, tempfile
        >>> path = tempfile.mkdtemp() + "/gallery.npy"
        >>> np.save(path, np.eye(4, dtype="float32"))
        >>> mmcore.retrieval.open_features(path).shape
        (4, 4)
    """
    if isinstance(source, (str, os.PathLike)):
        return files.opened(source, column)
    if tables.is_table(source):
        return tables.of_table(source, column)
    raise TypeError(
        f"source must be a path, a table of pyarrow or a dataset, got {type(source).__name__}"
    )


def source_of(gallery: object, name: str = "gallery") -> Source:
    """What kind of gallery it is; nothing of an iterable is read."""
    if isinstance(gallery, Gallery):
        return Source(len(gallery), gallery.features, gallery, None)
    if isinstance(gallery, (str, os.PathLike)) or tables.is_table(gallery):
        gallery = open_features(gallery)
    if is_array(gallery):
        array = as_tensor(name, gallery)
        check.check_matrix(name, array)
        return Source(array.shape[0], array, None, None)
    if isinstance(gallery, tables.Column):
        return Source(gallery.rows, None, None, gallery)
    if isinstance(gallery, Iterable) and not isinstance(gallery, (Mapping, bytes)):
        return Source(None, None, None, gallery)
    raise TypeError(
        f"{name} must be {ARRAYS}, a path, a table, a Gallery or an iterable of chunks, got "
        f"{type(gallery).__name__}"
    )


def chunks(source: Source, queries: Tensor, k: int, alongside: Alongside) -> Iterator[Chunk]:
    """All rows of the gallery, checked to be of the width, dtype and device of the queries."""
    is_packed = source.gallery is not None and source.gallery.prepared is not None
    if is_packed and queries.device.type == "cpu":
        assert source.gallery is not None
        yield from _prepared(source.gallery, queries, alongside)
    elif source.array is not None:
        _check("gallery", source.array, queries, "queries")
        yield from _split(source.array, queries, k, alongside)
    else:
        assert source.chunks is not None
        yield from _joined(_iterated(source.chunks, queries, k, alongside))
    alongside.check_end()


def _prepared(gallery: Gallery, queries: Tensor, alongside: Alongside) -> Iterator[Chunk]:
    _check("gallery", gallery.features, queries, "queries")
    assert gallery.prepared is not None
    pieces = gallery.features.split(gallery.rows_of_a_chunk)
    for features, prepared in zip(pieces, gallery.prepared, strict=False):
        yield Chunk(features, *alongside.take(features.shape[0]), prepared)


def _split(features: Tensor, queries: Tensor, k: int, alongside: Alongside) -> Iterator[Chunk]:
    """Views of an array, moved to the queries."""
    device = queries.device
    for piece in features.split(rows_of_a_chunk(features, queries, k)):
        yield Chunk(piece.to(device), *alongside.take(piece.shape[0]), None)


def rows_of_a_chunk(features: Tensor, queries: Tensor, k: int) -> int:
    """How many rows are searched at a time."""
    width = features.shape[1]
    operations = OPERATIONS.get(queries.device.type, OPERATIONS["cuda"])
    rows = max(2 * FEWEST_ROWS, 16 * k, int(operations / (2 * width * max(1, queries.shape[0]))))
    if features.device != queries.device:
        rows = min(rows, max(1, BYTES_MOVED // (width * features.element_size())))
    pieces = max(1, -(-features.shape[0] // rows))
    return max(1, -(-features.shape[0] // pieces))  # the last is not much smaller than the others


def _iterated(
    given: Iterable[object], queries: Tensor, k: int, alongside: Alongside
) -> Iterator[Chunk]:
    first = 0
    for number, array in enumerate(given):
        name = f"chunk {number} of gallery, from row {first},"
        features = as_tensor(name, array)
        alongside.begin_chunk(name, len(features) if features.ndim else 0)
        if features.ndim == 2 and not features.shape[0]:
            continue
        _check(name, features, queries, "queries and the chunks before" if number else "queries")
        yield from _split(features, queries, k, alongside)
        first += features.shape[0]


def _joined(found: Iterator[Chunk]) -> Iterator[Chunk]:
    """Small chunks as larger ones: copies, because whoever yields them may write to them again."""
    waiting: list[Chunk] = []
    rows = 0
    for chunk in found:
        if not waiting and chunk.features.shape[0] >= FEWEST_ROWS:
            yield chunk
            continue
        waiting.append(chunk._replace(features=chunk.features.clone()))
        rows += chunk.features.shape[0]
        if rows >= FEWEST_ROWS:
            yield _cat(waiting)
            waiting, rows = [], 0
    if rows:
        yield _cat(waiting)


def _cat(waiting: list[Chunk]) -> Chunk:
    if len(waiting) == 1:
        return waiting[0]

    def cat(values: tuple[Tensor | None, ...]) -> Tensor | None:
        tensors = [value for value in values if value is not None]
        return torch.cat(tensors) if tensors else None

    features, bias, group, _ = (cat(values) for values in zip(*waiting, strict=True))
    assert features is not None
    return Chunk(features, bias, group, None)


def _check(name: str, features: Tensor, queries: Tensor, queries_name: str) -> None:
    """Width, dtype and device; what is on the CPU is moved."""
    check.check_matrix(name, features)
    check.check_columns(name, features, queries.shape[1], queries_name)
    if features.dtype != queries.dtype:
        short = (
            str(queries.dtype).removeprefix("torch."),
            str(features.dtype).removeprefix("torch."),
        )
        raise TypeError(
            f"{name} must have dtype {short[0]} to match {queries_name}, got {short[1]}: convert "
            f"the queries to {short[1]}, or the gallery to {short[0]}"
        )
    if features.device.type != "cpu":
        check.check_device(name, features, queries, queries_name)
