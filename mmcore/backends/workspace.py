"""How many bytes a forward may keep for its backward."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from numbers import Integral

import torch

from mmcore.backends import buffer_pool

# On a CPU every block of N = M = 8192 for up to four threads; docs/performance.md shows the gain.
# On a GPU both gradients of SigLIP at N = 65,536, D = 1024, with as much to spare, where float32
# logits would be 16 GiB.
DEFAULT_BYTES = {"cpu": 320 * 2**20, "cuda": 2**30}


def check_bytes(value: object, argument: str) -> int:
    """Returns `value` if it is a whole number of bytes, not below 0; raises otherwise."""
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(
            f"{argument} must be a whole number of bytes, got {type(value).__name__} {value!r}"
        )
    if value < 0:
        raise ValueError(f"{argument} must be at least 0 bytes, got {value}")
    return int(value)


def _from_environment() -> int | None:
    text = os.environ.get("MMCORE_WORKSPACE", "").strip()
    if not text:
        return None
    try:
        value = int(text)
    except ValueError:
        message = f"MMCORE_WORKSPACE must be a whole number of bytes, got {text!r}"
        raise ValueError(message) from None
    return check_bytes(value, "MMCORE_WORKSPACE")


# A plain global: torch.compile guards on it, so that compiled code follows the block it runs in.
_bytes = _from_environment()


def _limit_waiting_memory() -> None:
    buffer_pool.limit(current("cpu"))


@contextmanager
def workspace(size: int) -> Iterator[None]:
    """Limits what each similarity op keeps from its forward for its backward, in the whole process.

    Where the workspace holds them, tiles of the similarity matrix (softmax objectives) or finished
    gradients (sigmoid objectives) are kept, and the backward computes the rest anew: time moves
    smoothly between 8·N·M·D operations at 0 bytes and 6·N·M·D at about 4·N·M bytes. What is kept
    lives as long as its graph. It then waits for the next forward, because fresh memory costs
    time, no more than `size` bytes in all; where a smaller workspace comes into force it is let go.

    On a CPU softmax statistics and their gradients are the same bits whatever the size; a sigmoid's
    kept gradients are scaled after they were summed, and differ in rounding. Beside a matrix unit
    (AMX) no tiles of bfloat16 features are kept: to compute them again takes no longer.

    On a GPU the memory is used in the backward too, for gradients of the logits of as many rows at
    a time as fit; up to half of it is kept where features are bfloat16, as exponentials rounded to
    bfloat16, so that there the gradients of softmax statistics differ in rounding.

    Inside ``torch.utils.checkpoint(…, use_reentrant=False)`` nothing is kept, because the forward
    would discard it. With ``use_reentrant=True`` the workspace at the time of the backward counts,
    which computes the forward again.

    A block beats the environment variable MMCORE_WORKSPACE, which beats the default: 320 MiB on a
    CPU, 1 GiB on a GPU.

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
    _limit_waiting_memory()
    try:
        yield
    finally:
        _bytes = outer
        _limit_waiting_memory()


def current(device_type: str) -> int:
    """The bytes in force: by block, else by MMCORE_WORKSPACE, else the default of the device."""
    default = DEFAULT_BYTES["cpu" if device_type == "cpu" else "cuda"]
    return default if _bytes is None else _bytes


def if_it_fits(size: int, workspace: int) -> int:
    """`size` float32 numbers, or 0 where the workspace does not hold them.

    In integers, because torch.compile compiles anew for each side of a comparison of sizes.
    """
    found: int = size * torch.sym_min(1, workspace // (4 * size))
    return found


_limit_waiting_memory()
