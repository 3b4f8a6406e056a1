"""The steps that two processes measure: a loss over both, and encoders with and without caching.

open_clip's formula with gather_with_grad: `whole` is local_loss=False, where every rank computes
the logits of all rows, `local` is local_loss=True, its own rows and columns. After the mean of DDP,
gradients of all are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.distributed.nn
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mmcore
from mmcore import functional

RANKS, WIDTH, HIDDEN, CHUNK = 2, 512, 1024, 128
SCALE = 14.0
Step = Callable[[], list[Tensor]]  # the value and the gradients


@dataclass(frozen=True)
class DistributedCase:
    """`op` on so many rows of each rank."""

    op: str
    rows: int
    dtype: str = "float32"
    mode: str = "forward+backward"

    @property
    def shape(self) -> dict[str, int | float]:
        """As a result line has it."""
        return {"rows": self.rows * RANKS, "width": WIDTH, "ranks": RANKS, "scale": SCALE}

    @property
    def title(self) -> str:
        """For example `clip, 512 rows a rank`."""
        return f"{self.op}, {self.rows:,} rows a rank"


# A step on the rows of a seed.
Prepared = Callable[[DistributedCase, int], Step]


def rows_of(case: DistributedCase, seed: int) -> tuple[Tensor, Tensor]:
    """This rank's rows of unit length."""
    draw = torch.Generator().manual_seed(1000 * seed + dist.get_rank())
    x = F.normalize(torch.randn(case.rows, WIDTH, generator=draw))
    return x, F.normalize(0.2 * x + F.normalize(torch.randn(case.rows, WIDTH, generator=draw)))


def open_clip_formula(x: Tensor, y: Tensor, scale: Tensor, is_local: bool) -> Tensor:
    """Gathers both sides with gradients, and stores the logits."""
    all_x, all_y = (torch.cat(dist.nn.all_gather(side)) for side in (x, y))
    if is_local:
        logits = scale * x @ all_y.T, scale * y @ all_x.T
    else:
        of_rows = scale * all_x @ all_y.T
        logits = of_rows, of_rows.T
    target = torch.arange(len(logits[0]))
    if is_local:
        target += len(x) * dist.get_rank()
    return (F.cross_entropy(logits[0], target) + F.cross_entropy(logits[1], target)) / 2


def of_loss(provider: str) -> Prepared:
    """The loss and the gradients of features and scale, on the rows of a seed."""

    def mmcore_loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        exchange = provider.removeprefix("mmcore-")
        return functional.clip_loss(
            x, y, scale, process_group="world", exchange=exchange, backend="cpu"
        )

    def rival(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return open_clip_formula(x, y, scale, provider == "open_clip-local")

    loss = mmcore_loss if provider.startswith("mmcore-") else rival

    def prepared(case: DistributedCase, seed: int) -> Step:
        inputs = [*rows_of(case, seed), torch.tensor(SCALE)]
        for each in inputs:
            each.requires_grad_()

        def step() -> list[Tensor]:
            value = loss(*inputs)
            return [value.detach(), *torch.autograd.grad(value, inputs)]

        return step

    return prepared


def of_towers(provider: str) -> Prepared:
    """A step of two encoders under DDP, without the optimizer."""
    torch.manual_seed(0)
    towers = [
        DistributedDataParallel(
            nn.Sequential(
                nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
                nn.Linear(HIDDEN, WIDTH),
            )
        )
        for _ in range(2)
    ]  # fmt: skip
    parameters = [each for tower in towers for each in tower.parameters()]

    def prepared(case: DistributedCase, seed: int) -> Step:
        batch = rows_of(case, seed)
        for parameter in parameters:
            parameter.grad = None

        def step() -> list[Tensor]:
            if provider == "mmcore-cached":
                pairs = zip(towers, batch, strict=True)
                sides = [mmcore.cached(tower, rows, rows=CHUNK) for tower, rows in pairs]
            else:
                sides = [tower(rows) for tower, rows in zip(towers, batch, strict=True)]
            x, y = (functional.l2_normalize(side) for side in sides)
            value = functional.clip_loss(x, y, SCALE, process_group="world", backend="cpu")
            value.backward()
            return [value.detach(), *(each.grad for each in parameters)]

        return step

    return prepared


# Of each op: what prepares a step, its providers, and which of them the ratios are of.
BUILDERS = {"clip": of_loss, "cached": of_towers}
PROVIDERS = {
    "clip": ("mmcore-gather", "mmcore-ring", "open_clip-local", "open_clip-whole"),
    "cached": ("mmcore-cached", "mmcore-plain"),
}
BESIDE = {"clip": "open_clip-local", "cached": "mmcore-plain"}
