"""Memory for what a forward keeps for its backward, used again by the next forward.

Fresh memory is faulted in page by page, which can cost more than what is kept saves. So a buffer
that comes back with its graph waits for the next forward: one buffer at a time, the largest, and
none beyond the workspace in force.
"""

from __future__ import annotations

import threading
import weakref
from typing import Any

import torch
from torch import Tensor

# Reentrant: a buffer may come back, by garbage collection, while its own thread is in here.
_lock = threading.RLock()
_waiting: list[Any] = []  # at most one array
_most_bytes = 0


def take(size: int) -> Tensor:
    """`size` float32 numbers, uninitialised; they come back when nobody refers to them any more."""
    if size == 0:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    with _lock:
        buffer = _waiting.pop() if _waiting else None
    if buffer is None or buffer.size < size:
        buffer = torch.empty(size, dtype=torch.float32, device="cpu").numpy()
    # torch holds on to the view as long as to the memory; the buffer outlives it.
    view = buffer[:size]
    weakref.finalize(view, _give_back, buffer).atexit = False
    return torch.from_numpy(view)


def limit(size: int) -> None:
    """From now on no buffer of more than `size` bytes waits."""
    global _most_bytes
    with _lock:
        _most_bytes = size
        _waiting[:] = [buffer for buffer in _waiting if buffer.nbytes <= size]


def _give_back(buffer: Any) -> None:
    with _lock:
        if buffer.nbytes <= _most_bytes and all(buffer.size > other.size for other in _waiting):
            _waiting[:] = [buffer]
