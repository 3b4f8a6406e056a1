"""Where the time of a training step goes, with the reference backend and with the kernels."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from itertools import pairwise
from statistics import median
from typing import Any

import torch

import mmcore
from batches import Batches, Modalities
from model import GlyphModel

LARGER = 4  # times the batch size of the run, for the second measurement
PHASES = (
    "batch",
    "encoders forward",
    "heads and losses forward",
    "heads and losses backward",
    "encoders backward",
    "optimizer",
)


def obstacle(backend: str) -> str | None:
    """Why this machine cannot serve the backend; None where it can."""
    try:
        with mmcore.backend(backend):
            mmcore.functional.l2_normalize(torch.ones(1, 1))
    except RuntimeError as error:
        return str(error)
    return None


def timed_phases(
    model: GlyphModel, optimizer: torch.optim.Optimizer, batches: Batches, step: int
) -> Iterator[float]:
    """Takes one step in the order of PHASES and yields the time at which each begins and ends.

    The encodings are cut off the graph, so that the backward pass stops at the encoders and can
    be timed in two parts; the gradients are the same.
    """
    yield time.perf_counter()
    batch = batches.training(step)
    yield time.perf_counter()
    encodings = model.encode(batch.inputs)
    yield time.perf_counter()
    leaves = Modalities(*(encoding.detach().requires_grad_() for encoding in encodings))
    loss = model.losses(model.project(leaves), batch).mean()
    yield time.perf_counter()
    loss.backward()
    yield time.perf_counter()
    torch.autograd.backward(encodings, [leaf.grad for leaf in leaves])
    yield time.perf_counter()
    optimizer.step()
    optimizer.zero_grad()
    yield time.perf_counter()


def measure_batch_size(
    model: GlyphModel, batches: Batches, repeats: int
) -> Iterator[dict[str, Any]]:
    """The median time of every phase, for each backend."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0)
    backends = [name for name in ("reference", "cpu") if obstacle(name) is None]
    samples: dict[str, list[list[float]]] = {backend: [] for backend in backends}
    for repeat in range(repeats + 1):
        # Taking turns, so that whatever else the machine does meets both alike.
        for backend in backends:
            with mmcore.backend(backend):
                times = list(timed_phases(model, optimizer, batches, repeat))
            if repeat > 0:  # the first is the warm-up
                durations = pairwise(times)
                samples[backend].append([1e3 * (end - begin) for begin, end in durations])
    for backend in backends:
        columns = zip(*samples[backend], strict=True)
        medians = {phase: median(column) for phase, column in zip(PHASES, columns, strict=True)}
        yield {"backend": backend, "batch_size": batches.batch_size, "milliseconds": medians}


def measure_step_time(model: GlyphModel, batches: Batches, is_quick: bool) -> list[dict[str, Any]]:
    """One record for each backend, at the batch size of the run and at a larger one."""
    model = copy.deepcopy(model)
    larger_size = min(LARGER * batches.batch_size, batches.largest_batch)
    larger = Batches(batches.glyphs, larger_size, batches.seed, batches.objective)
    records = list(measure_batch_size(model, batches, repeats=3 if is_quick else 5))
    records += measure_batch_size(model, larger, repeats=2 if is_quick else 3)
    return records
