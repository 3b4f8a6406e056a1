"""Memory for what a forward keeps for its backward, used again by the next forward.

Fresh memory is faulted in page by page, which can cost more than what is kept saves. So a buffer
that comes back with its graph waits for the next forward: one buffer at a time, the largest.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor

_waiting: list[Any] = []  # at most one array


def take(size: int) -> Tensor:
    """`size` float32 numbers, uninitialised; they come back when nobody refers to them any more."""
    if size == 0:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    buffer = _waiting.pop() if _waiting else None
    if buffer is None or buffer.size < size:
        buffer = torch.empty(size, dtype=torch.float32, device="cpu").numpy()
    # torch holds on to the view as long as to the memory; the buffer outlives it.
    view = buffer[:size]
    weakref.finalize(view, _give_back, buffer).atexit = False
    return torch.from_numpy(view)


def release(above: int = 0) -> None:
    """Lets go of a waiting buffer of more than `above` bytes."""
    if _waiting and _waiting[0].nbytes > above:
        _waiting.clear()


def _give_back(buffer: Any) -> None:
    if not _waiting or _waiting[0].size < buffer.size:
        _waiting[:] = [buffer]
