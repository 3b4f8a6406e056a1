"""Memory for what a forward keeps for its backward, used again by the next forward.

Fresh memory is faulted in page by page, which can cost more than what is kept saves. So buffers
that come back with their graph wait for the next forward, the largest ones, and together no more
than the workspace in force. A buffer more than twice as large as what is asked for is left to
another matrix, and let go when too many requests have passed it over.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

PATIENCE = 16  # requests

_lock = threading.Lock()
# A buffer may come back inside garbage collection, while this very thread holds the lock: appending
# here does not block.
_returned: deque[Any] = deque()
_waiting: list[_Buffer] = []  # the largest first
_most_bytes = 0


@dataclass(eq=False)
class _Buffer:
    array: Any
    passed_over: int = 0  # requests since it came back


def take(size: int) -> Tensor:
    """`size` float32 numbers, uninitialised; they come back when nobody refers to them any more."""
    if size == 0:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    with _lock:
        array = _fitting(size)
    _settle()
    if array is None:
        array = torch.empty(size, dtype=torch.float32, device="cpu").numpy()
    # torch holds on to the view as long as to the memory; the buffer outlives it.
    view = array[:size]
    weakref.finalize(view, _give_back, array).atexit = False
    return torch.from_numpy(view)


def limit(size: int) -> None:
    """From now on no more than `size` bytes wait."""
    global _most_bytes
    with _lock:
        _most_bytes = size
        _keep_largest()
    _settle()


def _fitting(size: int) -> Any:
    """The smallest waiting array that is large enough and not too large; None if there is none."""
    fitting = [buffer for buffer in _waiting if size <= buffer.array.size <= 2 * size]
    found = fitting[-1] if fitting else None
    for buffer in _waiting:
        buffer.passed_over += 1
    _waiting[:] = [b for b in _waiting if b is not found and b.passed_over < PATIENCE]
    return None if found is None else found.array


def _give_back(array: Any) -> None:
    _returned.append(array)
    _settle()


def _settle() -> None:
    """What came back waits. Whoever holds the lock does this for those who came meanwhile."""
    while _returned and _lock.acquire(blocking=False):
        try:
            while _returned:
                _waiting.append(_Buffer(_returned.popleft()))
            _keep_largest()
        finally:
            _lock.release()


def _keep_largest() -> None:
    room, kept = _most_bytes, []
    for buffer in sorted(_waiting, key=lambda buffer: buffer.array.nbytes, reverse=True):
        if buffer.array.nbytes <= room:
            room -= buffer.array.nbytes
            kept.append(buffer)
    _waiting[:] = kept
