"""Maps in files: NumPy's .npz format, which holds no code, with a digest over all of it."""

from __future__ import annotations

import hashlib
import io
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from numpy.typing import NDArray

FORMAT = "mmcore.LinearMap 1"
# By kind: arrays, and of which sizes; D and E are the widths of x and y, K components.
SHAPES = {
    "ridge": {"x_mean": "D", "y_mean": "E", "x_weight": "DE"},
    "procrustes": {"x_mean": "D", "y_mean": "E", "x_weight": "DE"},
    "cca": {"x_mean": "D", "y_mean": "E", "x_weight": "DK", "y_weight": "EK", "correlations": "K"},
}
# What zipfile and NumPy raise for bytes that are not what they were.
DAMAGE = (
    ValueError, KeyError, EOFError, OSError, MemoryError, NotImplementedError, RuntimeError,
    zlib.error, zipfile.BadZipFile,
)  # fmt: skip


def write(path: Path, kind: str, arrays: dict[str, Tensor]) -> None:
    """Under another name first, then moved into place."""
    held: dict[str, Any] = {name: value.cpu().numpy() for name, value in arrays.items()}
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        with partial.open("wb") as file:
            digest = np.array(_digest(kind, held))
            np.savez(file, format=np.array(FORMAT), kind=np.array(kind), digest=digest, **held)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read(path: Path) -> tuple[str, dict[str, Tensor]]:
    """The kind and the arrays; one error for whatever is wrong with the content."""
    content = path.read_bytes()
    try:
        stored = np.load(io.BytesIO(content), allow_pickle=False)
        if not isinstance(stored, np.lib.npyio.NpzFile):
            raise ValueError("one array")
        with stored:
            if str(stored["format"]) != FORMAT:
                raise ValueError("another format")
            kind, digest = str(stored["kind"]), str(stored["digest"])
            held = {name: stored[name] for name in SHAPES[kind]}
        if digest != _digest(kind, held):
            raise ValueError("another digest")
        _check_shapes(kind, held)
    except DAMAGE as error:
        raise ValueError(
            f"{path} must be a file that LinearMap.save wrote, of format {FORMAT!r}; it is damaged "
            f"or something else ({error})"
        ) from None
    return kind, {name: torch.from_numpy(value) for name, value in held.items()}


def _digest(kind: str, arrays: dict[str, NDArray[Any]]) -> str:
    found = hashlib.sha256(f"{FORMAT} {kind}".encode())
    for name in SHAPES[kind]:
        array = arrays[name]
        found.update(f"{name} {array.dtype.str} {array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()


def _check_shapes(kind: str, arrays: dict[str, NDArray[Any]]) -> None:
    sizes: dict[str, int] = {}
    for name, letters in SHAPES[kind].items():
        array = arrays[name]
        if array.dtype != np.float64 or array.ndim != len(letters):
            raise ValueError(f"{name} has dtype {array.dtype} and {array.ndim} dimensions")
        for letter, size in zip(letters, array.shape, strict=True):
            if sizes.setdefault(letter, size) != size:
                raise ValueError(f"{name} has {size} numbers, not {sizes[letter]}")
