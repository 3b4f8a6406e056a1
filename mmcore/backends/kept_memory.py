"""Memory for what a forward keeps for its backward, used again by the next forward.

Fresh memory is faulted in page by page, which can cost more than what is kept saves. So buffers
that come back with their graph wait for the next forward, the largest ones, and together no more
than the workspace in force: an objective of several matrices finds one for each.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

# Reentrant: a buffer may come back, by garbage collection, while its own thread is in here.
_lock = threading.RLock()
_waiting: list[Any] = []  # arrays, the largest first
_most_bytes = 0


def take(size: int) -> Tensor:
    """`size` float32 numbers, uninitialised; they come back when nobody refers to them any more."""
    if size == 0:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    with _lock:
        fitting = [i for i, buffer in enumerate(_waiting) if buffer.size >= size]
        # Where none is large enough the largest makes room for the new one.
        buffer = _waiting.pop(fitting[-1] if fitting else 0) if _waiting else None
    if buffer is None or buffer.size < size:
        buffer = torch.empty(size, dtype=torch.float32, device="cpu").numpy()
    # torch holds on to the view as long as to the memory; the buffer outlives it.
    view = buffer[:size]
    weakref.finalize(view, _give_back, buffer).atexit = False
    return torch.from_numpy(view)


def limit(size: int) -> None:
    """From now on no more than `size` bytes wait."""
    global _most_bytes
    with _lock:
        _most_bytes = size
        _keep_largest(_waiting)


def _give_back(buffer: Any) -> None:
    with _lock:
        _keep_largest([*_waiting, buffer])


def _keep_largest(buffers: list[Any]) -> None:
    room, waiting = _most_bytes, []
    for buffer in sorted(buffers, key=lambda array: array.nbytes, reverse=True):
        if buffer.nbytes <= room:
            room -= buffer.nbytes
            waiting.append(buffer)
    _waiting[:] = waiting
