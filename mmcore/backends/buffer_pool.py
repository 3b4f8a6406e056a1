"""Memory for what a forward keeps for its backward, used again by the next forward.

Fresh memory is faulted in page by page, which can cost more than what is kept saves. So a buffer
whose graph has gone waits for the next forward: the largest ones, and together no more than the
workspace in force. A buffer more than twice as large as what is asked for is left to another
matrix, and let go when too many requests have passed it over.
"""

from __future__ import annotations

import sys
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

PATIENCE = 16  # requests


@dataclass
class Buffer:
    """Memory that is in use as long as a tensor refers to it, and waits otherwise."""

    array: NDArray[np.float32]
    passed_over: int = 0  # requests since it was used

    def references(self) -> int:
        """How many hold the array."""
        return sys.getrefcount(self.array)

    def is_waiting(self) -> bool:
        """Whether nobody but this buffer holds it."""
        return self.references() == _REFERENCES_OF_A_WAITING_ARRAY


_REFERENCES_OF_A_WAITING_ARRAY = Buffer(torch.empty(0, device="cpu").numpy()).references()
_lock = threading.Lock()
_buffers: list[Buffer] = []  # the largest first
_most_bytes = 0


def take(size: int) -> Tensor:
    """`size` float32 numbers, uninitialised; they wait again when nobody refers to them."""
    if size == 0:
        return torch.empty(0, dtype=torch.float32, device="cpu")
    with _lock:
        waiting = [buffer for buffer in _buffers if buffer.is_waiting()]
        fitting = [buffer for buffer in waiting if size <= buffer.array.size <= 2 * size]
        if fitting:
            buffer = fitting[-1]
        else:
            buffer = Buffer(torch.empty(size, dtype=torch.float32, device="cpu").numpy())
            _buffers.append(buffer)
        for other in waiting:
            other.passed_over += 1
        buffer.passed_over = 0
        _buffers[:] = [other for other in _buffers if other.passed_over < PATIENCE]
        _keep_largest()
        # torch refers to the view, and the view to the array, as long as the tensor lives. Until
        # there is a tensor the buffer seems to wait, so no other thread may come in before.
        return torch.from_numpy(buffer.array[:size])


def limit(size: int) -> None:
    """From now on no more than `size` bytes wait."""
    global _most_bytes
    with _lock:
        _most_bytes = size
        _keep_largest()


def waiting() -> list[int]:
    """Sizes of the buffers that wait, the largest first."""
    with _lock:
        return [buffer.array.size for buffer in _buffers if buffer.is_waiting()]


def _keep_largest() -> None:
    """Forgets buffers beyond the limit; one in use then goes with its graph."""
    room, kept = _most_bytes, []
    for buffer in sorted(_buffers, key=lambda buffer: buffer.array.nbytes, reverse=True):
        if buffer.array.nbytes <= room:
            room -= buffer.array.nbytes
            kept.append(buffer)
    _buffers[:] = kept
