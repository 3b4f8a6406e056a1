"""Peak memory of one objective, forward and backward, in this process, which must be fresh.

    python tests/objective_memory.py clip_loss    prints bytes above inputs and gradients

The name is that of a case of the catalogue: `"dcl_loss, weighted"`. Peak: VmHWM less VmRSS before
the call, both of /proc/self/status, less the gradients of the inputs. What an allocator has once
taken it reuses unseen, so one process measures one objective.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch

import mmcore
from mmcore.bench.catalogue import CASES, Case, Draw

# Of the matrix; the columns of all features.
COLUMNS, WIDTH = 32_768, 256
# Enough to load libraries, too little to leave buffers behind.
WARM_UP_COLUMNS = 64

MEASURED = {name: case for name, case in CASES.items() if case.is_large}


def step(case: Case, columns: int) -> int:
    """Forward and backward; returns the peak above the inputs and their gradients, in bytes."""
    draw = Draw(columns // case.variant.columns, WIDTH, scale=20.0, kind="pairs")
    arguments = case.arguments(draw)
    leaves = [
        leaf.requires_grad_() for leaf in case.leaves(arguments, case.variant.frozen).values()
    ]
    function = case.function(WIDTH)

    def call() -> None:
        losses = function(**arguments)
        (losses if isinstance(losses, torch.Tensor) else sum(losses)).backward()

    gradients = sum(leaf.numel() * leaf.element_size() for leaf in leaves)
    return max(measured_peak(call) - gradients, 0)


def measured_peak(call: Callable[[], None]) -> int:
    """The most bytes that a call takes beyond what is in memory already."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    call()
    return status_bytes("VmHWM") - before


def status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    with mmcore.workspace(0), mmcore.backend("cpu"):
        step(MEASURED[sys.argv[1]], WARM_UP_COLUMNS)
        print(step(MEASURED[sys.argv[1]], COLUMNS))
