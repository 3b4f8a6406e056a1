"""The efficiency of a loss over many GPUs, predicted: arithmetic, bandwidths, latencies.

    efficiency = time of the arithmetic alone / time of the step

A step is CLIP's forward and backward, 2·n·N·D and 6·n·N·D operations a rank, as mmcore's exchanges
run it: the next rows travel, and the last gradients of columns go back, while a slab is computed
with. What travels meanwhile goes one exchange after the other. Nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mmcore.ops.sharded.slabs import LEAST_COLUMNS, ONE_SLAB


@dataclass(frozen=True)
class Machine:
    """What is assumed; rates in units a second, times in seconds."""

    arithmetic: float = 560e12  # bfloat16 operations that the kernels reach
    inside: float = 330e9  # bytes that a GPU receives from those of its node
    outside: float = 45e9  # bytes through a network card, one for each GPU
    memory: float = 3e12  # bytes of its own memory that a GPU reads or writes
    gpus: int = 8  # in a node
    latency_inside: float = 4e-6
    latency_outside: float = 12e-6
    launch_forward: float = 80e-6  # of the kernels of a slab
    launch_backward: float = 200e-6
    workspace: int = 2**30  # bytes: the default on a GPU
    element: int = 2  # bytes of a feature

    def nodes(self, ranks: int) -> int:
        """How many nodes the ranks fill."""
        return -(-ranks // self.gpus)

    def all_gather(self, bytes_: float, ranks: int) -> float:
        """A node receives the rows of other nodes once, through all of its cards."""
        nodes = self.nodes(ranks)
        bandwidth = self.inside if nodes == 1 else min(self.inside, self.gpus * self.outside)
        latency = self.latency_inside * math.log2(ranks) + self.latency_outside * math.log2(nodes)
        return (ranks - 1) / ranks * bytes_ / bandwidth + latency

    def inside_leg(self, bytes_: float, ranks: int) -> float:
        """Each GPU of a node sends each other one its share."""
        near = min(ranks, self.gpus)
        return (near - 1) / near * bytes_ / self.inside + self.latency_inside * math.log2(near)

    def outside_leg(self, bytes_: float, ranks: int) -> float:
        """The sums of a node go to others, each through the card of the GPU that has them.

        A GPU may have none for its own node.
        """
        nodes = self.nodes(ranks)
        away = bytes_ / self.gpus / self.outside if nodes > 1 else 0.0
        return away + self.latency_outside * math.log2(nodes)

    def sums(self, bytes_: float, ranks: int) -> float:
        """Of what each leg brings: parts and a sum are read, and the sum is written."""
        outside = 3 * bytes_ / self.gpus if self.nodes(ranks) > 1 else 0.0
        return (3 * bytes_ + outside) / self.memory

    def hop(self, bytes_: float, ranks: int) -> float:
        """To another rank: the slowest link of the ring sets the pace."""
        if self.nodes(ranks) == 1:
            return bytes_ / self.inside + self.latency_inside
        return bytes_ / self.outside + self.latency_outside


@dataclass(frozen=True)
class Prediction:
    """Seconds of the arithmetic, and efficiencies."""

    ideal: float
    gather: float
    ring: float


@dataclass(frozen=True)
class Step:
    """CLIP's step of `rows` rows a rank."""

    machine: Machine
    ranks: int
    rows: int
    width: int

    @property
    def product(self) -> float:
        """Seconds of the matrix of one rank."""
        return 2 * self.rows * self.rows * self.ranks * self.width / self.machine.arithmetic

    def slabs(self, returns: bool) -> int:
        """As mmcore/ops/sharded/slabs.py cuts them."""
        m = self.machine
        near = m.gpus if m.nodes(self.ranks) > 1 else self.ranks
        bytes_ = 3 * m.element + (12 + -(-8 // near) if returns else 0)
        enough = math.isqrt(self.ranks * self.rows * ONE_SLAB)
        columns = max(LEAST_COLUMNS, min(m.workspace // (bytes_ * self.width), enough))
        return -(-self.rows // max(1, columns // self.ranks))

    def gathered(self, compute: float, launch: float, returns: bool) -> float:
        """Seconds of a pass; the last gradients come when there is nothing left to compute."""
        m, slabs = self.machine, self.slabs(returns)
        columns = self.rows * self.ranks / slabs
        fetch = m.all_gather(m.element * columns * self.width, self.ranks)
        each, back, last = compute / slabs + launch, 0.0, 0.0
        if returns:
            bytes_ = 4 * columns * self.width
            back = m.inside_leg(bytes_, self.ranks) + m.outside_leg(bytes_, self.ranks)
            each += m.sums(bytes_, self.ranks)
            last = back
        return fetch + (slabs - 1) * max(each, fetch + back) + each + last

    def ringed(self, compute: float, launch: float, returns: bool) -> float:
        """Seconds of a pass in which the rows of one rank at a time go round."""
        m, each = self.machine, compute / self.ranks + launch
        fetch = m.hop(m.element * self.rows * self.width, self.ranks)
        back = m.hop(4 * self.rows * self.width, self.ranks) if returns else 0.0
        return (self.ranks - 1) * max(each, fetch + back) + each + back

    def efficiency(self, run: Callable[[float, float, bool], float]) -> float:
        """Of a forward and a backward."""
        m = self.machine
        forward = run(self.product, m.launch_forward, False)
        return 4 * self.product / (forward + run(3 * self.product, m.launch_backward, True))


def predict(machine: Machine, ranks: int, rows: int, width: int) -> Prediction:
    """Of CLIP's step, `rows` rows a rank."""
    step = Step(machine, ranks, rows, width)
    return Prediction(
        4 * step.product, step.efficiency(step.gathered), step.efficiency(step.ringed)
    )


def print_predictions(machine: Machine, ranks: tuple[int, ...], width: int) -> None:
    """The table, with what it assumes."""
    m = machine
    print("\nPREDICTED, not measured: the efficiency of clip_loss over GPUs, bfloat16, D =", width)
    print(
        f"Assumed: {m.arithmetic / 1e12:.0f} TFLOP/s of products; nodes of {m.gpus} GPUs; a GPU "
        f"receives {m.inside / 1e9:.0f} GB/s\nin its node and {m.outside / 1e9:.0f} GB/s from "
        f"others, after {m.latency_inside * 1e6:.0f} and {m.latency_outside * 1e6:.0f} µs, and "
        f"adds what has come at {m.memory / 1e12:.0f} TB/s;\nlaunches of "
        f"{m.launch_forward * 1e6:.0f} and {m.launch_backward * 1e6:.0f} µs a slab, forward and "
        f"backward; a workspace of {m.workspace / 2**30:.0f} GiB; the next rows and\nthe last "
        "gradients travel meanwhile."
    )
    print(f"{'n':>8}{'W':>7}{'N':>12}{'arithmetic, ms':>17}{'gather':>9}{'ring':>9}")
    for rows in (4096, 16384):
        for size in ranks:
            found = predict(m, size, rows, width)
            shares = f"{found.gather:>9.2f}{found.ring:>9.2f}"
            print(f"{rows:>8}{size:>7}{rows * size:>12,}{found.ideal * 1e3:>17.2f}{shares}")
