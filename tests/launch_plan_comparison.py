"""A launch by Triton and the same launch by plan, as the driver sees them; for
launch_plan_reports.py, whose process gets the driver that records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import stub_gpu
from triton.runtime.jit import JITFunction

from mmcore.backends.triton.launch_plan import PlannedKernel

stub = stub_gpu.install()
Lines = list[str]
bind = PlannedKernel.__getitem__
Launch = Callable[..., object]


class Counts(NamedTuple):
    """Of a kernel: launches by plan, kinds of calls."""

    planned: int
    plans: int

    @staticmethod
    def of(kernel: PlannedKernel) -> Counts:
        bind(kernel, (1,))
        plans = kernel._bind.__self__
        return Counts(plans.planned, plans.plans)


def recorded(launch: Launch, *arguments: Any, **constants: Any) -> Lines:
    stub.record()
    launch(*arguments, **constants)
    return stub.lines()


class Comparison:
    """What Triton's launcher passed to the driver, and what the plan did, launch by launch."""

    def __init__(self) -> None:
        self.kernels: list[str] = []
        self.unplanned: list[str] = []
        self.encoded: list[str] = []
        self.differences: list[tuple[str, Lines, Lines]] = []

    def of(self, kernel: PlannedKernel, grid: Any) -> Launch:
        """A launch of a kernel, which happens thrice: the second is Triton's where it is new."""

        def launch(*arguments: Any, **constants: Any) -> None:
            name = kernel.__name__
            wanted = recorded(JITFunction.__getitem__(kernel, grid), *arguments, **constants)
            counts, found = [Counts.of(kernel).planned], []
            for _ in range(2):
                found.append(recorded(bind(kernel, grid), *arguments, **constants))
                counts.append(Counts.of(kernel).planned)
            self.kernels.append(name)
            if counts[1] == counts[2]:
                self.unplanned.append(name)
            first = 0 if counts[1] > counts[0] else 1
            if len(found[first]) > 1:
                self.encoded.append(name)
            # A plan need not encode a matrix anew that it has just encoded; its map is a parameter.
            for lines in found[first:]:
                if lines[-1:] != wanted[-1:] or not set(lines) <= set(wanted):
                    self.differences.append((name, wanted, lines))

        return launch

    def report(self) -> dict[str, Any]:
        return {
            "kernels": sorted(set(self.kernels)),
            "unplanned": sorted(set(self.unplanned)),
            "encoded": sorted(set(self.encoded)),
            "differences": self.differences,
        }
