"""Launches by plan beside launches by Triton, over a libcuda that records; for test_launch_plan.py.

A script for assembly.py: every report is one JSON line.
"""

from __future__ import annotations

import random
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import triton
from assembly import serve
from launch_plan_comparison import Comparison, Counts, bind, recorded, stub
from launch_plan_kernels import (
    descriptor_kernel,
    descriptors,
    every_kind_kernel,
    other_values,
    plain_kernel,
    tensor,
    usual,
    volume_kernel,
    volumes,
)
from launch_plan_keys import random_keys
from launch_plan_steps import STEPS
from triton import knobs
from triton.runtime.jit import JITFunction

from mmcore.backends.triton import launch_plan
from mmcore.backends.triton.launch_plan import PlannedKernel


def step(name: str) -> dict[str, Any]:
    """Every launch of an op's forward and backward."""
    comparison = Comparison()
    PlannedKernel.__getitem__ = lambda kernel, grid: comparison.of(kernel, grid)
    try:
        for call in STEPS[name]:
            call()
    finally:
        PlannedKernel.__getitem__ = bind
    return comparison.report()


def every_kind() -> dict[str, Any]:
    """One argument after another is changed; then all calls again, in another order."""
    comparison = Comparison()
    calls = [usual(), *(usual() | {name: value} for name, value in other_values())]
    random.seed(0)
    for call in [*calls, *random.sample(calls, len(calls))]:
        comparison.of(every_kind_kernel, (2, 3))(**call)
    return comparison.report() | {"plans": Counts.of(every_kind_kernel).plans}


def descriptions(version: int) -> dict[str, Any]:
    """Matrices that the copy engine brings, with a driver of a version."""
    comparison = Comparison()
    stub.set_version(version)
    for each in descriptors():
        comparison.of(descriptor_kernel, (1,))(tensor(), each, (3, 16))
    for each in volumes():
        comparison.of(volume_kernel, (1,))(tensor(), each)
    return comparison.report()


def grids() -> dict[str, Any]:
    """Of every form; those without a program launch nothing."""
    comparison = Comparison()
    for grid in ((3,), (3, 2), (3, 2, 5), [4], (0,), (2, 0), (2**30,)):
        comparison.of(plain_kernel, grid)(tensor())
        comparison.of(plain_kernel, grid)(tensor(), num_ctas=2)
    before = Counts.of(plain_kernel)
    by_call = recorded(plain_kernel[lambda _: (6,)], tensor())
    return comparison.report() | {
        "by_call": by_call, "called_by_triton": Counts.of(plain_kernel) == before,
    }  # fmt: skip


def keys(calls: int) -> dict[str, Any]:
    """What stands in place of compiled kernels has nothing to be recorded."""
    stub.record(False)
    return random_keys(calls)


@contextmanager
def watched(change: Callable[[Any], object]) -> Iterator[None]:
    """With something set that plans leave to Triton's launcher."""
    runtime = knobs.runtime
    with runtime.scope():
        change(runtime)
        yield
    runtime.launch_enter_hook.calls.clear()
    runtime.launch_exit_hook.calls.clear()


def hooks() -> dict[str, Any]:
    """How many of two launches went by plan while somebody watched, what was seen, and after."""
    seen: list[int] = []
    changes: dict[str, Callable[[Any], object]] = {
        "enter": lambda runtime: runtime.launch_enter_hook.add(lambda _: seen.append(1)),
        "exit": lambda runtime: runtime.launch_exit_hook.add(lambda _: seen.append(1)),
        "function": lambda runtime: setattr(runtime, "launch_enter_hook", lambda _: seen.append(1)),
        "debug": lambda runtime: setattr(runtime, "debug", True),
    }
    out = tensor()
    plain_kernel[(1,)](out)
    report: dict[str, Any] = {}
    for name, change in changes.items():
        start, _ = Counts.of(plain_kernel)
        with watched(change):
            plain_kernel[(1,)](out)
            plain_kernel[(1,)](out)
        middle, _ = Counts.of(plain_kernel)
        plain_kernel[(1,)](out)
        report[name] = [middle - start, len(seen), Counts.of(plain_kernel).planned - middle]
        seen.clear()
    start, _ = Counts.of(plain_kernel)
    plain_kernel.add_pre_run_hook(lambda *_, **__: seen.append(1))
    plain_kernel[(1,)](out)
    plain_kernel.pre_run_hooks.clear()
    report["before_run"] = [Counts.of(plain_kernel).planned - start, len(seen)]
    return report


def needs() -> dict[str, Any]:
    """How many of three launches of a kernel went by plan, where a launch takes more than a plan
    does, and how many reached the driver.
    """
    report = {}
    options = {
        "cooperative": {"launch_cooperative_grid": True},
        "dependent": {"launch_pdl": True},
    }  # fmt: skip
    for name, option in options.items():
        planned, launches = Counts.of(plain_kernel).planned, stub.launches()
        for _ in range(3):
            plain_kernel[(1,)](tensor(), **option)
        report[name] = [Counts.of(plain_kernel).planned - planned, stub.launches() - launches]
    return report


class LikeATensor:
    """What Triton takes for a tensor, and a plan does not know."""

    dtype = torch.float32

    def data_ptr(self) -> int:
        return 4096


def without_driver() -> dict[str, Any]:
    """Who launches where no libcuda is found."""
    kernel = triton.jit(plain_kernel.fn)
    kernel.__class__ = type(plain_kernel)
    configure, launch_plan.configure = launch_plan.configure, lambda: False
    lines = recorded(kernel[(1,)], tensor())
    launch_plan.configure = configure
    return {"by": kernel._bind.func.__qualname__, "launches": len(lines)}


def foreign() -> dict[str, Any]:
    """Lines of launches with an argument that no plan knows, and plans that keep a tensor."""
    start, _ = Counts.of(plain_kernel)
    lines = [recorded(plain_kernel[(1,)], LikeATensor()) for _ in range(3)]
    planned = Counts.of(plain_kernel).planned - start
    before = Counts.of(every_kind_kernel)
    constant = (torch.zeros(()), 3)
    for _ in range(3):
        every_kind_kernel[(1,)](**usual() | {"SIZES": constant})
    keeps = Counts.of(every_kind_kernel) != before
    return {"planned": planned, "lines": lines, "keeps": keeps}


def failure() -> dict[str, str]:
    """What a launch that fails raises, by plan and by Triton, and what wrong calls raise."""
    out = tensor()
    messages = {}
    for _ in range(2):
        plain_kernel[(1,)](out)
    for name, launch in (("plan", bind), ("triton", JITFunction.__getitem__)):
        stub.let_launches_return(719)
        try:
            launch(plain_kernel, (1,))(out)
        except RuntimeError as error:
            messages[name] = str(error)
        finally:
            stub.let_launches_return(0)
    for name, option in (("option", {"no_such_option": 3}), ("argument", {"out": out})):
        try:
            plain_kernel[(1,)](out, **option)
        except (KeyError, TypeError) as error:
            messages[name] = type(error).__name__
    return messages


def kept_blocks(launches: int) -> int:
    """How many objects of Python more there are after launches of every kind of argument."""
    call = usual()
    for _ in range(3):
        every_kind_kernel[(1,)](**call)
    before = sys.getallocatedblocks()
    for _ in range(launches):
        every_kind_kernel[(1,)](**call)
    return sys.getallocatedblocks() - before


def in_threads(count: int, run: Callable[[], object]) -> None:
    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def surroundings() -> dict[str, Any]:
    """Streams of launches, plans for each context, launches from threads, tensors that stay."""
    out = tensor()
    plain_kernel[(1,)](out)
    streams = []
    for stub.stream in (0, 9, 2**47 + 1, 7):
        (line,) = recorded(plain_kernel[(1,)], out)
        streams.append(line.split("stream ")[1].split()[0])
    before = Counts.of(plain_kernel)
    for which in (1, 1, 0):
        stub.set_context(which)
        plain_kernel[(1,)](out)
    contexts = Counts.of(plain_kernel).plans - before.plans
    launches = stub.launches()
    in_threads(4, lambda: [plain_kernel[(1,)](tensor()) for _ in range(500)])
    launches = stub.launches() - launches
    gone = weakref.ref(out)
    del out
    return {
        "streams": streams, "contexts": contexts, "launches": launches,
        "is_gone": gone() is None, "kept_blocks": kept_blocks(1000),
        "returns": type(plain_kernel[(1,)](tensor())).__name__,
    }  # fmt: skip


if __name__ == "__main__":
    serve({
        "step": step, "every_kind": every_kind, "descriptions": descriptions, "grids": grids,
        "keys": keys, "hooks": hooks, "needs": needs, "foreign": foreign,
        "without_driver": without_driver,
        "failure": failure, "surroundings": surroundings, "version": lambda: triton.__version__,
    })  # fmt: skip
