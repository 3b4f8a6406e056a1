"""Columns of vectors in tables of pyarrow and in datasets of Hugging Face, some rows at a time.

Neither library is imported before one of its objects, or a .parquet file, is given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

ROWS = 65536  # of a chunk
LIBRARIES = ("pyarrow", "datasets")


class Column:
    """A column of vectors as chunks (rows, width), read whenever it is iterated."""

    def __init__(
        self, rows: int | None, chunks: Callable[[], Iterator[NDArray[Any]]], name: str
    ) -> None:
        self.rows, self._chunks, self._name = rows, chunks, name

    def __iter__(self) -> Iterator[NDArray[Any]]:
        return self._chunks()

    def __repr__(self) -> str:
        return f"{self._name}, {'an unknown number of' if self.rows is None else self.rows} rows"


def is_table(value: object) -> bool:
    """Whether `of_table` knows it, by the library that its type is of."""
    return any(kind.__module__.split(".")[0] in LIBRARIES for kind in type(value).__mro__[:-1])


def of_table(value: Any, column: str | None) -> Column:
    """The column of a table of pyarrow, of its arrays, or of a dataset."""
    module = type(value).__module__.split(".")[0]
    if module == "datasets":
        return _of_dataset(value, column)
    pa = import_module("pyarrow")
    if isinstance(value, (pa.Array, pa.ChunkedArray)):
        if column is not None:
            raise ValueError(f"column must be None for a single column, got {column!r}")
        return _of_arrow(value, "column")
    if isinstance(value, pa.RecordBatch):
        value = pa.Table.from_batches([value])
    if isinstance(value, pa.Table):
        name = _chosen(value.schema, column)
        return _of_arrow(value.column(name), f"column {name!r}")
    if hasattr(value, "iter_batches") and hasattr(value, "schema_arrow"):
        return _of_parquet_file(value, column)
    raise TypeError(
        f"a table must be a pyarrow Table, RecordBatch, array or ParquetFile, or a dataset of "
        f"Hugging Face, got {type(value).__name__}"
    )


def of_parquet(path: str | os.PathLike[str], column: str | None) -> Column:
    """The column of a .parquet file."""
    try:
        parquet = import_module("pyarrow.parquet")
    except ImportError as error:
        raise ImportError(
            f"reading {path} needs pyarrow: install it by `pip install pyarrow`"
        ) from error
    try:
        file = parquet.ParquetFile(path, memory_map=True)
    except import_module("pyarrow").ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file, or is cut short: {error}") from error
    return _of_parquet_file(file, column)


def _of_parquet_file(file: Any, column: str | None) -> Column:
    name = _chosen(file.schema_arrow, column)

    def chunks() -> Iterator[NDArray[Any]]:
        first = 0
        for batch in file.iter_batches(batch_size=ROWS, columns=[name]):
            yield _vectors(batch.column(0), f"column {name!r}", first)
            first += batch.num_rows

    return Column(file.metadata.num_rows, chunks, f"column {name!r}")


def _of_arrow(value: Any, name: str) -> Column:
    arrays = value.chunks if hasattr(value, "chunks") else [value]

    def chunks() -> Iterator[NDArray[Any]]:
        first = 0
        for array in arrays:
            for begin in range(0, len(array), ROWS):
                yield _vectors(array.slice(begin, ROWS), name, first + begin)
            first += len(array)

    return Column(len(value), chunks, name)


def _of_dataset(value: Any, column: str | None) -> Column:
    if type(value).__name__ == "Column":  # dataset["embedding"]
        value, column = value.source, value.column_name
    if hasattr(value, "keys"):
        names = ", ".join(repr(key) for key in value)
        raise TypeError(f"a dataset must be one split of {names}, got {type(value).__name__}")
    features = value.features
    if features is not None:
        column = _chosen(features.arrow_schema, column)
    elif column is None:
        raise ValueError("column must be given for a dataset that does not name its columns")
    arrow = value.with_format("arrow")
    rows = len(value) if hasattr(value, "__len__") else None

    def chunks() -> Iterator[NDArray[Any]]:
        first = 0
        for batch in arrow.iter(batch_size=ROWS):
            array = batch.column(column)
            for part in getattr(array, "chunks", [array]):
                yield _vectors(part, f"column {column!r}", first)
                first += len(part)

    return Column(rows, chunks, f"column {column!r}")


def _chosen(schema: Any, column: str | None) -> str:
    """The column, or the only one of vectors."""
    vectors = [field.name for field in schema if _is_list(_storage(field.type))]
    if column is None:
        if len(vectors) != 1:
            raise ValueError(
                f"a table must have one column of vectors, got {vectors}: choose one by "
                "mmcore.retrieval.open_features(table, column=…)"
            )
        return str(vectors[0])
    if column not in schema.names:
        raise ValueError(f"column must be one of {schema.names}, got {column!r}")
    return column


def _is_list(kind: Any) -> bool:
    types = import_module("pyarrow").types
    return bool(types.is_fixed_size_list(kind) or types.is_list(kind) or types.is_large_list(kind))


def _storage(kind: Any) -> Any:
    """The type that an extension, such as a tensor of fixed shape, is stored as."""
    return getattr(kind, "storage_type", kind)


def _vectors(array: Any, name: str, first: int) -> NDArray[Any]:
    """(rows, width), without a copy where the vectors are of fixed size."""
    array = getattr(array, "storage", array)
    if not _is_list(array.type):
        raise TypeError(f"{name} must have vectors, lists of numbers, got {array.type}")
    if array.null_count:
        row = first + int(np.flatnonzero(array.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{name} must have a vector in every row, got none in row {row}")
    width = _width(array, name, first)
    numbers = array.flatten()
    if numbers.null_count:
        at = int(np.flatnonzero(numbers.is_null().to_numpy(zero_copy_only=False))[0])
        raise ValueError(f"{name} must have numbers, got null in row {first + at // width}")
    flat: NDArray[Any] = numbers.to_numpy(zero_copy_only=False)
    return flat.reshape(len(array), width)


def _width(array: Any, name: str, first: int) -> int:
    if hasattr(array.type, "list_size"):
        return int(array.type.list_size)
    sizes = array.value_lengths().to_numpy(zero_copy_only=False)
    if not len(sizes):
        return 1
    others = np.flatnonzero(sizes != sizes[0])
    if len(others):
        raise ValueError(
            f"{name} must have vectors of one width, got {sizes[0]} in row {first} and "
            f"{sizes[others[0]]} in row {first + others[0]}"
        )
    return int(sizes[0])
