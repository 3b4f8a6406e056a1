"""Sums over ranks with a gradient, the rows of other ranks by number, and vectors of all ranks.

    sum_over_ranks(v) = Σ_r v_r, on every rank

Its gradient depends on what the ranks do with the sum. Where all compute the same number from it,
L, each has the gradient of that number, and ∂L/∂v_r needs no exchange: `replicated` multiplies by a
factor, the number of ranks where gradients are averaged later. Where each rank goes its own
way, `shared` adds up what all of them back-propagate.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.ops.autograd import differentiable
from mmcore.ops.define import define
from mmcore.ops.flops import no_flops
from mmcore.ops.sharded.collectives import gather_uneven, group_of, offsets, sum_of_ranks


def _run_sum(backend: str, value: Tensor, group: str) -> Tensor:
    return sum_of_ranks(value, group_of(group), "sum over ranks")


def _run_gather(backend: str, values: Tensor, counts: Tensor, group: str) -> Tensor:
    return gather_uneven(values, counts.tolist(), group_of(group), "gather of a vector")


def _fake_gather(values: Tensor, counts: Tensor, group: str, backend: str) -> Tensor:
    size = torch.library.get_ctx().new_dynamic_size()
    return values.new_empty(size)


define(
    "sum_over_ranks", "(Tensor value, str group, str backend) -> Tensor",
    fake=lambda value, group, backend: torch.empty_like(value), run=_run_sum, flops=no_flops,
)  # fmt: skip
define(
    "gather_of_ranks", "(Tensor values, Tensor counts, str group, str backend) -> Tensor",
    fake=_fake_gather, run=_run_gather, flops=no_flops,
)  # fmt: skip


def _sum(value: Tensor, group: str) -> Tensor:
    found: Tensor = torch.ops.mmcore.sum_over_ranks(value, group, "reference")
    return found


def _save_factor(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.factor = inputs[2]


def _save_group(ctx: Any, inputs: tuple[object, ...], output: Tensor) -> None:
    ctx.group = inputs[1]


_replicated = differentiable(
    lambda value, group, factor: _sum(value, group), save=_save_factor,
    backward=lambda ctx, gradient: (ctx.factor * gradient, None, None),
)  # fmt: skip
_shared = differentiable(
    _sum, save=_save_group, backward=lambda ctx, gradient: (_sum(gradient, ctx.group), None)
)


def replicated(value: Tensor, group: str, factor: float) -> Tensor:
    """Σ over ranks, of which all ranks compute the same; the gradient is multiplied."""
    found: Tensor = _replicated(value, group, factor)
    return found


def shared(value: Tensor, group: str) -> Tensor:
    """Σ over ranks, of which each rank computes its own."""
    found: Tensor = _shared(value, group)
    return found


def gathered(values: Tensor, counts: Tensor, group: str) -> Tensor:
    """The vector of all ranks, of which each has `counts`; without a gradient."""
    found: Tensor = torch.ops.mmcore.gather_of_ranks(values.detach(), counts, group, "reference")
    return found


def first_row(counts: Tensor, group: str) -> int:
    """The number of this rank's first row."""
    return offsets(counts.tolist())[group_of(group).rank]
