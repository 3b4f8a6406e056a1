"""How many bytes a forward may keep for its backward."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from mmcore.backends import kept_memory

# Every block of N = M = 8192 for up to four threads; the README says what this gains.
DEFAULT_BYTES = 320 * 2**20


def check_bytes(value: object, argument: str) -> int:
    """Returns `value` if it is a whole number of bytes, not below 0; raises otherwise."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(
            f"{argument} must be a whole number of bytes, got {type(value).__name__} {value!r}"
        )
    if value < 0:
        raise ValueError(f"{argument} must be at least 0 bytes, got {value}")
    return value


def _from_environment() -> int:
    text = os.environ.get("MMCORE_WORKSPACE", "").strip() or str(DEFAULT_BYTES)
    try:
        value = int(text)
    except ValueError:
        message = f"MMCORE_WORKSPACE must be a whole number of bytes, got {text!r}"
        raise ValueError(message) from None
    return check_bytes(value, "MMCORE_WORKSPACE")


# A plain global: torch.compile guards on it, so that compiled code follows the block it runs in.
_bytes = _from_environment()
kept_memory.limit(_bytes)


@contextmanager
def workspace(size: int) -> Iterator[None]:
    """Limits what each similarity op keeps from its forward for its backward, in the whole process.

    Where the workspace holds them, tiles of the similarity matrix (softmax objectives) or finished
    gradients (sigmoid objectives) are kept, and the backward computes the rest anew: time moves
    smoothly between 8·N·M·D operations at 0 bytes and 6·N·M·D at about 4·N·M bytes. What is kept
    lives as long as its graph. One buffer then waits for the next forward, because fresh memory
    costs time; where a smaller workspace comes into force it is let go.

    Softmax statistics and their gradients are the same bits whatever the size; a sigmoid's kept
    gradients are scaled after they were summed, and differ in rounding.

    A block beats the environment variable MMCORE_WORKSPACE, which beats the default of 320 MiB.

    Args:
        size: bytes; 0 is the leanest.

    Raises:
        TypeError, ValueError: `size` is no whole number, or below 0.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(8, 16)).requires_grad_()
        >>> with mmcore.workspace(0):
        ...     loss = mmcore.functional.clip_loss(x, x.detach(), 10.0)
        >>> loss.backward()
    """
    global _bytes
    outer, _bytes = _bytes, check_bytes(size, "size")
    kept_memory.limit(size)
    try:
        yield
    finally:
        _bytes = outer
        kept_memory.limit(outer)


def current() -> int:
    """The bytes in force: by block, else by MMCORE_WORKSPACE, else the default."""
    return _bytes
