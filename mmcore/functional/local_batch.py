"""Several processes: a warning where a loss compares the rows of one process alone."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist

from mmcore.tracing import constant_when_compiled


class LocalBatchWarning(UserWarning):
    """A loss compares the rows of this process with each other, and not with other processes'.

    It comes once in a process, from the first such loss, where torch.distributed has more than one
    process; ``process_group="world"`` compares the rows of all (docs/several-processes.md). Whoever
    wants the loss of each process, or has gathered the rows already, filters the warning.

    Example:
        >>> import warnings, mmcore
        >>> warnings.filterwarnings("ignore", category=mmcore.LocalBatchWarning)
    """


_has_warned = False
PACKAGES = tuple(f"{folder}{os.sep}" for folder in (Path(__file__).parents[1], *torch.__path__))


def warn_of_local_batch(objective: str, process_group: object = None) -> bool:
    """Whether it warned. torch.compile calls it once, while it traces."""
    return process_group is None and _warn(objective)


@constant_when_compiled
def _warn(objective: str) -> bool:
    global _has_warned
    if _has_warned or not dist.is_available() or not dist.is_initialized():
        return False
    processes = dist.get_world_size()
    if processes < 2:
        return False
    _has_warned = True
    warnings.warn(
        f"{objective} compares the rows of this process with each other alone, but "
        f"torch.distributed has {processes} processes. Give process_group='world' to compare the "
        "rows of all (docs/several-processes.md). If the rows of this process are meant, or are "
        "gathered already: warnings.filterwarnings('ignore', category=mmcore.LocalBatchWarning)",
        LocalBatchWarning,
        stacklevel=_level_of_caller(),
    )
    return True


def _level_of_caller() -> int:
    """How many frames below `warn_of_local_batch` the first one outside of mmcore and torch is."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(PACKAGES):
        level, frame = level + 1, frame.f_back
    return level
