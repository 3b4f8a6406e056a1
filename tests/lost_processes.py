"""What three processes of test_lost_processes.py do, of which one fails; the others save it."""

from __future__ import annotations

import os
import signal
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist

from mmcore import functional

PROCESSES, SECONDS = 3, 4
FAULTS = ("killed", "stopped", "skips a call", "skips a backward")


def run(rank: int, folder: str, fault: str) -> None:
    """The body of each process: two steps, of which the second goes wrong on the last rank."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )  # fmt: skip
    step()
    dist.barrier()
    start = time.monotonic()
    try:
        fail(fault) if rank == PROCESSES - 1 else step()
        # Whoever skipped a call is found at the next one.
        step()
        found = "no error"
    except (RuntimeError, ValueError) as error:
        found = f"{type(error).__name__}: {error}"
    torch.save((found, time.monotonic() - start), Path(folder) / f"{rank}.pt")
    os._exit(0)  # without waiting for a rank that is gone


def step(backwards: bool = True) -> None:
    """A forward and a backward over the rows of all processes."""
    x, y = (torch.randn(8, 16, requires_grad=True) for _ in range(2))
    loss = functional.clip_loss(x, y, 5.0, process_group="world")
    if backwards:
        loss.backward()


def fail(fault: str) -> None:
    """In place of the second step."""
    if fault == "skips a backward":
        step(backwards=False)
    elif fault != "skips a call":
        os.kill(os.getpid(), signal.SIGKILL if fault == "killed" else signal.SIGSTOP)
