"""The arguments of a call of the catalogue, spread over ranks: what each rank is given."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor

from mmcore.bench.catalogue import Case, Draw, filled
from mmcore.bench.catalogue.row import Path

WIDTH = 24
# Rows of each rank, by the number of ranks: 12 in all, some ranks with none.
COUNTS = {1: [12], 2: [5, 7], 3: [5, 0, 7], 5: [1, 3, 0, 6, 2], 8: [2, 1, 1, 2, 0, 3, 2, 1]}
# Held by every rank as a whole.
PARAMETERS = {"linear_cross_entropy_loss": {"weight", "bias"}, "coca_loss": {"weight", "bias"}}


class Spread:
    """A case's arguments, float64; `counts` are the rows of each rank."""

    def __init__(self, case: Case, counts: Sequence[int], seed: int = 3) -> None:
        self.case, self.counts = case, list(counts)
        draw = Draw(sum(counts), WIDTH, kind=case.row.kinds[0], seed=seed, dtype=torch.float64)
        self.arguments = case.arguments(draw)

    def of(self, rank: int) -> dict[str, Any]:
        """What one rank is given."""
        return {name: self._part(name, value, rank) for name, value in self.arguments.items()}

    def joined(self, path: Path, parts: Sequence[Tensor]) -> Tensor:
        """The gradients that the ranks have, as one process would have them."""
        whole = self.case.leaves(self.arguments)[path]
        if whole.ndim == 0 or path[0] in PARAMETERS.get(self.case.row.name, ()):
            return torch.stack(list(parts)).sum(0)
        if not self._has_queue(path[0]):
            return torch.cat(list(parts))
        keys, _ = self._sizes_of_keys()
        pairs = [
            part.split([len(rows), len(part) - len(rows)])
            for part, rows in zip(parts, self._rows(keys), strict=True)
        ]
        return torch.cat([torch.cat(side) for side in zip(*pairs, strict=True)])

    def _part(self, name: str, value: Any, rank: int) -> Any:
        if isinstance(value, dict):
            return {key: self._part(name, each, rank) for key, each in value.items()}
        if isinstance(value, list):
            return [self._part(name, each, rank) for each in value]
        is_whole = name in PARAMETERS.get(self.case.row.name, ())
        if not isinstance(value, Tensor) or value.ndim == 0 or is_whole:
            return value
        if self._has_queue(name):
            sides = value.split(self._sizes_of_keys())
            return torch.cat([side[self._rows(len(side))[rank]] for side in sides])
        return value[self._rows(len(value))[rank]]

    def _has_queue(self, name: str) -> bool:
        """Whether the numbers are those of the keys, and then those of the queue."""
        return name in ("key_group", "log_q") and "queue" in self.arguments

    def _sizes_of_keys(self) -> list[int]:
        return [len(self.arguments[name]) for name in ("key", "queue")]

    def _rows(self, size: int) -> list[Tensor]:
        """Which of so many rows each rank has: in proportion, the last rank those that are left."""
        times = size // sum(self.counts)
        shares = [times * count for count in self.counts]
        shares[-1] += size - sum(shares)
        ends = list(accumulate(shares))
        return [torch.arange(end - share, end) for share, end in zip(shares, ends, strict=True)]


def value_and_gradients(
    case: Case, arguments: dict[str, Any], **options: Any
) -> tuple[list[Tensor], dict[Path, Tensor]]:
    """Of the function; where it returns several losses the gradients are those of their sum."""
    leaves = {
        path: value.detach().clone().requires_grad_()
        for path, value in case.leaves(arguments).items()
    }
    found = case.function(WIDTH)(**filled(arguments, leaves), **options)
    losses = [found] if isinstance(found, Tensor) else list(found)
    gradients = torch.autograd.grad(
        sum(losses), list(leaves.values()), allow_unused=True, materialize_grads=True
    )
    values = [loss.detach() for loss in losses]
    return values, dict(zip(leaves, gradients, strict=True))
