"""Processes that take steps together over gloo: times in turns, and peak memory of one step."""

from __future__ import annotations

import json
import tempfile
import time
import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from distribution_steps import BUILDERS, DistributedCase, providers
from machine import others_cpu_seconds
from memory import (
    MIB,
    give_back_free_memory,
    reset_high_water_mark,
    status_bytes,
    total_bytes,
)

SECONDS = 300
WARM_UP_ROWS = 64
Figures = dict[str, Any]


def run(job: str, case: DistributedCase, *arguments: object) -> list[Figures]:
    """What `JOBS[job]` finds on each rank, in fresh processes of one thread."""
    with tempfile.TemporaryDirectory() as folder:
        given = (job, case, arguments, folder)
        torch.multiprocessing.spawn(_rank, given, nprocs=case.ranks)
        files = [Path(folder) / f"{rank}.json" for rank in range(case.ranks)]
        return [json.loads(file.read_text()) for file in files]


def _rank(
    rank: int, job: str, case: DistributedCase, arguments: tuple[Any, ...], folder: str
) -> None:
    torch.set_num_threads(1)
    # open_clip calls it, too.
    warnings.filterwarnings("ignore", "torch.distributed.nn", FutureWarning)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=case.ranks,
        timeout=timedelta(seconds=SECONDS),
    )  # fmt: skip
    found = JOBS[job](case, *arguments)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


def times(case: DistributedCase, rounds: int) -> Figures:
    """Of every provider the wall and the processor time of each step, in ms; the order rotates."""
    names = providers(case.op)
    prepared = {name: BUILDERS[case.op](name) for name in names}
    for name in names:
        prepared[name](case, 0)()
    wall: dict[str, list[float]] = {name: [] for name in names}
    processor: dict[str, list[float]] = {name: [] for name in names}
    start, others = time.perf_counter(), _others()
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            step = prepared[name](case, 1 + index)
            dist.barrier()
            begin, begin_processor = time.perf_counter(), time.process_time()
            result = step()
            wall[name].append((time.perf_counter() - begin) * 1e3)
            processor[name].append((time.process_time() - begin_processor) * 1e3)
            del result
    others_cores = (_others() - others) / (time.perf_counter() - start)
    return {"wall": wall, "processor": processor, "others_cores": max(others_cores, 0.0)}


def _others() -> float:
    """Processor time of everybody but the ranks, in seconds."""
    own = torch.tensor(time.process_time(), dtype=torch.float64)
    everybody = others_cpu_seconds() + own.item()
    dist.all_reduce(own)
    return everybody - own.item()


def memory(case: DistributedCase, provider: str) -> Figures:
    """The peak of a step above inputs, parameters and results."""
    prepared = BUILDERS[case.op](provider)
    small = DistributedCase(case.op, WARM_UP_ROWS, case.ranks)
    for _ in range(2):  # loads libraries; DDP makes its buckets, and makes them again
        prepared(small, 0)()
    step = prepared(case, 1)
    give_back_free_memory()
    dist.barrier()
    reset_high_water_mark()
    before = status_bytes("VmRSS")
    results = step()
    peak = status_bytes("VmHWM") - before - total_bytes(results)
    return {"peak_mib": round(max(peak, 0) / MIB, 1)}


JOBS = {"times": times, "memory": memory}
