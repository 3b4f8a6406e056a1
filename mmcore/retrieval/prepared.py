"""A gallery that is packed once for many searches, and the file it is kept in."""

from __future__ import annotations

import os
import zlib
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.ops import topk as topk_op
from mmcore.ops.topk import METRICS
from mmcore.retrieval import files, safetensors_file
from mmcore.retrieval.alongside import Vector, as_bias, as_ids
from mmcore.retrieval.arrays import as_tensor, is_array

ROWS_OF_A_CHUNK = 65536
KIND, VERSION = "mmcore.retrieval.Gallery", "1"


class Gallery:
    """Features that are searched again and again: packed once, saved and loaded.

    On a CPU the compiled backend keeps each row as bytes besides (about D + 20 of them), with the
    bounds of their error. A search reads these, and the features of the few rows that the bounds
    leave over. Results are the same as without.

    Args:
        features: (M, D), an array of any kind that `topk` takes, or a path of .npy or .safetensors,
            which stays memory-mapped. They are not copied: do not write to them afterwards.
        metric: ``"inner_product"``, ``"cosine"`` or ``"l2"``.
        bias: (M,) floating-point numbers, as `gallery_bias` of `topk`.
        group: (M,) integers, as `gallery_group` of `topk`.
        backend: which backend packs; see `mmcore.backend`.

    Raises:
        TypeError, ValueError: `features` is no matrix of floating-point numbers, `bias` or `group`
            does not have a number for each row, or `metric` is none of these.

    Memory:
        M·(D + 20) bytes besides the features, where the backend packs.

    Example:
        >>> import numpy as np, mmcore, tempfile
        >>> features = np.random.default_rng(0).normal(size=(1000, 32)).astype("float32")
        >>> gallery = mmcore.retrieval.Gallery(features, metric="cosine")
        >>> path = tempfile.mkdtemp() + "/gallery.safetensors"
        >>> gallery.save(path)
        >>> found = mmcore.retrieval.topk(features[:2], mmcore.retrieval.Gallery.load(path), 1)
        >>> found.indices[:, 0].tolist()
        [0, 1]
    """

    def __init__(
        self,
        features: Any,
        *,
        metric: str = "inner_product",
        bias: Any = None,
        group: Any = None,
        backend: str | None = None,
    ) -> None:
        check.check_choice("metric", metric, METRICS)
        if isinstance(features, (str, os.PathLike)):
            features = files.opened(features)
        if not is_array(features):
            raise TypeError(
                "features of a Gallery must be an array or a path of .npy or .safetensors, got "
                f"{type(features).__name__}: topk takes chunks as they are"
            )
        self.features = as_tensor("features", features)
        check.check_matrix("features", self.features)
        rows = len(self)
        self.metric = metric
        self.bias = None if bias is None else Vector("bias", bias, rows, as_bias).take(rows)
        self.group = None if group is None else Vector("group", group, rows, as_ids).take(rows)
        self.rows_of_a_chunk = ROWS_OF_A_CHUNK
        self.prepared = _prepared(self.features, metric, backend)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes a file of safetensors, which other programs can read too.

        The format, unlike .npz, keeps each array in one piece that can be memory-mapped.
        """
        tensors = {f"prepared.{i}": part for i, part in enumerate(self.prepared or ())}
        named = {"features": self.features, "bias": self.bias, "group": self.group}
        tensors |= {name: value for name, value in named.items() if value is not None}
        metadata = {"kind": KIND, "version": VERSION, "metric": self.metric}
        metadata["rows_of_a_chunk"] = str(self.rows_of_a_chunk)
        metadata |= {f"crc32 of {name}": _checksum(value) for name, value in tensors.items()}
        safetensors_file.write(path, tensors, metadata)

    @staticmethod
    def load(path: str | os.PathLike[str], *, check: bool = True) -> Gallery:
        """Opens what `save` wrote, memory-mapped.

        Args:
            path: the file.
            check: whether to compare checksums, which reads the file once. Without, a byte that
                has changed on the disk may change results.

        Raises:
            ValueError: the file is cut short, damaged, or not from `save`.
        """
        tensors, metadata = safetensors_file.read(path)
        _check_kind(path, metadata)
        if check:
            for name, value in tensors.items():
                if metadata.get(f"crc32 of {name}") != _checksum(value):
                    raise ValueError(f"{path} is damaged: the bytes of {name!r} have changed")
        return _assembled(path, tensors, metadata)

    def __len__(self) -> int:
        return self.features.shape[0]

    def __repr__(self) -> str:
        rows, width = self.features.shape
        dtype = str(self.features.dtype).removeprefix("torch.")
        packed = "packed" if self.prepared is not None else "not packed"
        beside = [name for name in ("bias", "group") if getattr(self, name) is not None]
        rest = "".join(f", with a {name}" for name in beside)
        return f"Gallery({rows} × {width}, {dtype}, {self.metric}, {packed}{rest})"


def _prepared(features: Tensor, metric: str, backend: str | None) -> list[Tensor] | None:
    """The packed form of each chunk."""
    parts = []
    for chunk in features.split(ROWS_OF_A_CHUNK):
        part = topk_op.prepare(chunk, metric, backend=backend)
        if part is None:
            return None
        parts.append(part)
    return parts


def _checksum(value: Tensor) -> str:
    found = 0
    for piece in safetensors_file.bytes_of(value):
        found = zlib.crc32(piece, found)
    return f"{found:08x}"


def _check_kind(path: str | os.PathLike[str], metadata: Mapping[str, str]) -> None:
    kind, version = metadata.get("kind"), metadata.get("version")
    if kind != KIND:
        raise ValueError(
            f"{path} must be written by Gallery.save: it is a file of safetensors of another kind; "
            "pass the path to Gallery or to topk, if it has features"
        )
    if version != VERSION:
        raise ValueError(f"{path} must be of version {VERSION}, got {version}: save it again")


def _assembled(
    path: str | os.PathLike[str], tensors: dict[str, Tensor], metadata: Mapping[str, str]
) -> Gallery:
    """The gallery, without packing it again."""
    gallery = Gallery.__new__(Gallery)
    try:
        gallery.features, gallery.metric = tensors["features"], metadata["metric"]
        gallery.rows_of_a_chunk = int(metadata["rows_of_a_chunk"])
        chunks = len(gallery.features.split(gallery.rows_of_a_chunk))
        parts = [name for name in tensors if name.startswith("prepared.")]
        gallery.prepared = [tensors[f"prepared.{i}"] for i in range(chunks)] if parts else None
    except (KeyError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path} is damaged: what it says of itself is incomplete") from error
    gallery.bias, gallery.group = tensors.get("bias"), tensors.get("group")
    return gallery
