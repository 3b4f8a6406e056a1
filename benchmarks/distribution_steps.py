"""The steps that processes measure: a loss over two, and encoders with and without caching.

open_clip's formula with gather_with_grad: `whole` is local_loss=False, where every rank computes
the logits of all rows, `local` is local_loss=True, its own rows and columns. After the mean of DDP,
gradients of all are the same.

`ranking` is a step of one encoder of queries and documents with cached gradients, of one process
and of two: mmcore's beside sentence-transformers', whose gradients are the same.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec

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
    """`op` on so many rows of each of so many ranks."""

    op: str
    rows: int
    ranks: int = RANKS
    dtype: str = "float32"
    mode: str = "forward+backward"

    @property
    def shape(self) -> dict[str, int | float]:
        """As a result line has it."""
        return {
            "rows": self.rows * self.ranks, "width": WIDTH, "ranks": self.ranks, "scale": SCALE,
        }  # fmt: skip

    @property
    def title(self) -> str:
        """For example `clip, 512 rows a rank`."""
        title = f"{self.op}, {self.rows:,} rows a rank"
        return title if self.ranks == RANKS else f"{title}, {self.ranks} rank"


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


def tower() -> nn.Sequential:
    """An encoder of three layers."""
    return nn.Sequential(
        nn.Linear(WIDTH, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
        nn.Linear(HIDDEN, WIDTH),
    )  # fmt: skip


def of_towers(provider: str) -> Prepared:
    """A step of two encoders under DDP, without the optimizer."""
    torch.manual_seed(0)
    towers = [DistributedDataParallel(tower()) for _ in range(2)]
    parameters = [each for model in towers for each in model.parameters()]

    def loss(*batch: Tensor) -> Tensor:
        if provider == "mmcore-cached":
            pairs = zip(towers, batch, strict=True)
            sides = [mmcore.cached(model, rows, rows=CHUNK) for model, rows in pairs]
        else:
            sides = [model(rows) for model, rows in zip(towers, batch, strict=True)]
        x, y = (functional.l2_normalize(side) for side in sides)
        return functional.clip_loss(x, y, SCALE, process_group="world", backend="cpu")

    return _of_encoders(loss, parameters)


class SentenceEncoder(nn.Sequential):
    """An encoder with the call of sentence-transformers' models."""

    def forward(self, features: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"sentence_embedding": super().forward(features["rows"])}


def of_ranking(provider: str) -> Prepared:
    """A step of one encoder of both sides, under DDP where there are several ranks."""
    torch.manual_seed(0)
    is_ours, several = provider == "mmcore-cached", dist.get_world_size() > 1
    encoder = tower() if is_ours else SentenceEncoder(*tower())
    wrapped = DistributedDataParallel(encoder) if several else encoder
    theirs = None if is_ours else _sentence_transformers_loss(encoder, wrapped, several)

    def loss(*batch: Tensor) -> Tensor:
        if theirs is not None:
            found: Tensor = theirs([{"rows": rows} for rows in batch], None)
            return found
        sides = [mmcore.cached(wrapped, rows, rows=CHUNK) for rows in batch]
        x, y = (functional.l2_normalize(side) for side in sides)
        return functional.info_nce_loss(x, y, SCALE, process_group="world", backend="cpu")

    return _of_encoders(loss, list(encoder.parameters()))


def _sentence_transformers_loss(encoder: nn.Module, wrapped: nn.Module, several: bool) -> nn.Module:
    losses = import_module("sentence_transformers.sentence_transformer.losses")
    found: nn.Module = losses.CachedMultipleNegativesRankingLoss(
        encoder, scale=SCALE, mini_batch_size=CHUNK, gather_across_devices=several
    )
    found.model = wrapped  # as its trainer does, after the loss was made
    return found


def _of_encoders(loss: Callable[..., Tensor], parameters: list[nn.Parameter]) -> Prepared:
    """The value of the loss and the gradients of the parameters."""

    def prepared(case: DistributedCase, seed: int) -> Step:
        batch = rows_of(case, seed)
        for parameter in parameters:
            parameter.grad = None

        def step() -> list[Tensor]:
            value = loss(*batch)
            value.backward()
            return [value.detach(), *(each.grad for each in parameters if each.grad is not None)]

        return step

    return prepared


# Of each op: what prepares a step, its providers, and which of them the ratios are of.
BUILDERS = {"clip": of_loss, "cached": of_towers, "ranking": of_ranking}
PROVIDERS = {
    "clip": ("mmcore-gather", "mmcore-ring", "open_clip-local", "open_clip-whole"),
    "cached": ("mmcore-cached", "mmcore-plain"),
    "ranking": ("mmcore-cached", "sentence-transformers-cached"),
}
BESIDE = {
    "clip": "open_clip-local", "cached": "mmcore-plain", "ranking": "sentence-transformers-cached",
}  # fmt: skip


def providers(op: str) -> tuple[str, ...]:
    """Those that are installed."""
    has_theirs = find_spec("sentence_transformers") is not None
    return tuple(
        name for name in PROVIDERS[op] if has_theirs or not name.startswith("sentence-transformers")
    )
