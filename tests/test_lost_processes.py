"""A process that ends, stops or leaves out a call: what the others see, and after how long."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lost_processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from lost_processes import FAULTS, PROCESSES, SECONDS

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


def seen(folder: Path, fault: str) -> list[tuple[str, float]]:
    """The error of each process that is left, and after how many seconds it came."""
    processes: Any = torch.multiprocessing.start_processes(
        lost_processes.run, (str(folder), fault), PROCESSES, join=False, start_method="spawn"
    )
    files = [folder / f"{rank}.pt" for rank in range(PROCESSES - 1)]
    end = time.monotonic() + 60
    try:
        while not all(file.exists() and file.stat().st_size for file in files):
            assert time.monotonic() < end, "the processes hang"
            time.sleep(0.1)
        time.sleep(0.2)
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(file) for file in files]


@pytest.mark.parametrize(
    "fault",
    [pytest.param(fault, marks=[pytest.mark.full] * (fault == "stopped")) for fault in FAULTS],
)
def test_the_others_get_an_error(tmp_path: Path, fault: str) -> None:
    """Catches a hang, a process that aborts, and an error that does not say what to do."""
    found = seen(tmp_path, fault)
    for error, seconds in found:
        assert "process group '0'" in error
        assert seconds < SECONDS + 3
        # Whoever leaves out a whole call is in step with the others, until it is done first.
        remedy = "must be alike" if fault == "skips a backward" else "resume from a checkpoint"
        assert remedy in error
