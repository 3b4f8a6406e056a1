"""The efficiency of a loss over many GPUs, predicted: arithmetic, bandwidths, latencies.

    efficiency = time of the arithmetic alone / time of the step

A step is CLIP's forward and backward, 2·n·N·D and 6·n·N·D operations a rank, as mmcore's exchanges
run it: the next rows travel while a slab is computed with; gradients of columns go back after it,
and nothing is computed meanwhile. Nothing here was measured.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from mmcore.ops.sharded.slabs import LEAST_COLUMNS


@dataclass(frozen=True)
class Machine:
    """What is assumed; rates in units a second, times in seconds."""

    arithmetic: float = 560e12  # bfloat16 operations that the kernels reach
    inside: float = 330e9  # bytes that a GPU receives from those of its node
    outside: float = 45e9  # bytes through a network card, one for each GPU
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

    def all_to_all(self, bytes_: float, ranks: int) -> float:
        """Each rank sends to each; what goes to other nodes, through the sender's own card."""
        nodes = self.nodes(ranks)
        away = bytes_ * (1 - 1 / nodes) / self.outside
        near = bytes_ * (min(ranks, self.gpus) - 1) / ranks / self.inside
        latency = self.latency_inside if nodes == 1 else self.latency_outside
        return max(away, near) + latency * math.log2(ranks)

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


def predict(machine: Machine, ranks: int, rows: int, width: int) -> Prediction:
    """Of CLIP's step, `rows` rows a rank."""
    m, columns = machine, rows * ranks
    product = 2 * rows * columns * width / m.arithmetic
    there, back = m.element * columns * width, 4 * columns * width
    of_each = max(1, LEAST_COLUMNS // ranks, m.workspace // ((2 * m.element + 8) * width * ranks))
    slabs = -(-rows // of_each)

    def gathered(compute: float, launch: float, returns: bool) -> float:
        fetch = m.all_gather(there / slabs, ranks)
        each = compute / slabs + launch
        returned = slabs * m.all_to_all(back / slabs, ranks) if returns else 0.0
        return fetch + (slabs - 1) * max(each, fetch) + each + returned

    def ringed(compute: float, launch: float, returns: bool) -> float:
        fetch = m.hop(there / ranks, ranks)
        each = compute / ranks + launch
        returned = (ranks - 1) * m.hop(back / ranks, ranks) if returns else 0.0
        return (ranks - 1) * max(each, fetch) + each + returned

    def efficiency(step: Callable[[float, float, bool], float]) -> float:
        whole = step(product, m.launch_forward, False) + step(3 * product, m.launch_backward, True)
        return 4 * product / whole

    return Prediction(4 * product, efficiency(gathered), efficiency(ringed))


def print_predictions(machine: Machine, ranks: tuple[int, ...], width: int) -> None:
    """The table, with what it assumes."""
    m = machine
    print("\nPREDICTED, not measured: the efficiency of clip_loss over GPUs, bfloat16, D =", width)
    print(
        f"Assumed: {m.arithmetic / 1e12:.0f} TFLOP/s of products; nodes of {m.gpus} GPUs; a GPU "
        f"receives {m.inside / 1e9:.0f} GB/s\nin its node and {m.outside / 1e9:.0f} GB/s from "
        f"others, after {m.latency_inside * 1e6:.0f} and {m.latency_outside * 1e6:.0f} µs; "
        f"launches of {m.launch_forward * 1e6:.0f} and {m.launch_backward * 1e6:.0f} µs a slab,\n"
        f"forward and backward; a workspace of {m.workspace / 2**30:.0f} GiB; the next rows travel "
        "meanwhile, gradients do not."
    )
    print(f"{'n':>8}{'W':>7}{'N':>12}{'arithmetic, ms':>17}{'gather':>9}{'ring':>9}")
    for rows in (4096, 16384):
        for size in ranks:
            found = predict(m, size, rows, width)
            shares = f"{found.gather:>9.2f}{found.ring:>9.2f}"
            print(f"{rows:>8}{size:>7}{rows * size:>12,}{found.ideal * 1e3:>17.2f}{shares}")
