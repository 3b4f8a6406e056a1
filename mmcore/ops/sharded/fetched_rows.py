"""Rows of other ranks by their numbers; the gradient goes back to whoever holds them.

    out_i = y_index(i), 0 where the index is −1        grad_y_j = Σ_{i: index(i) = j} grad_i

i and j run over all ranks. Only rows that are asked for travel: a number goes to who holds
the row, the row comes back. Gradients of a row are added in rank order, in float32 (float64 for
float64).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import arithmetic_dtype
from mmcore.ops.autograd import differentiable
from mmcore.ops.define import define
from mmcore.ops.flops import no_flops
from mmcore.ops.sharded.collectives import Group, all_gather, all_to_all, group_of, offsets

STEP = "rows of other ranks"


class _Route(NamedTuple):
    """Which of this rank's requests go where, and what is asked of this rank."""

    group: Group
    order: Tensor  # the requests by their owner; those of −1 come first and go nowhere
    asks: list[int]  # how many go to each rank
    answers: list[int]  # how many each rank asks for here
    place: Tensor  # the rows of this rank that are asked for, by rank

    @staticmethod
    def of(index: Tensor, counts: list[int], name: str) -> _Route:
        group, starts = group_of(name), offsets(counts)
        bounds = torch.tensor(starts[1:], device=index.device)
        owner = torch.where(index < 0, -1, torch.searchsorted(bounds, index, right=True))
        order = owner.argsort(stable=True)
        asks = torch.stack([(owner == rank).sum() for rank in range(group.size)])
        table = all_gather(asks, group, STEP)
        given = table[group.rank].tolist()
        taken = table[:, group.rank].tolist()
        order = order[len(index) - sum(given) :]
        asked = all_to_all(index[order], given, taken, group, STEP)
        return _Route(group, order, given, taken, asked - starts[group.rank])


def _fetch(backend: str, y: Tensor, index: Tensor, counts: Tensor, group: str) -> Tensor:
    route = _Route.of(index, counts.tolist(), group)
    found = all_to_all(y[route.place], route.answers, route.asks, route.group, STEP)
    out = y.new_zeros((index.shape[0], *y.shape[1:]))
    out[route.order] = found
    return out


def _return(
    backend: str, rows: Tensor, index: Tensor, counts: Tensor, size: int, group: str
) -> Tensor:
    route = _Route.of(index, counts.tolist(), group)
    found = all_to_all(rows[route.order], route.asks, route.answers, route.group, STEP)
    total = rows.new_zeros((size, *rows.shape[1:]), dtype=arithmetic_dtype(rows.dtype))
    if total.is_cuda:  # index_put_ sorts its indices there; index_add_ adds in any order
        total.index_put_((route.place,), found.to(total.dtype), accumulate=True)
    else:
        total.index_add_(0, route.place, found.to(total.dtype))
    return total.to(rows.dtype)


define(
    "fetched_rows",
    "(Tensor y, Tensor index, Tensor counts, str group, str backend) -> Tensor",
    fake=lambda y, index, *_: y.new_empty((index.shape[0], *y.shape[1:])), run=_fetch,
    flops=no_flops,
)  # fmt: skip
define(
    "returned_rows",
    "(Tensor rows, Tensor index, Tensor counts, SymInt size, str group, str backend) -> Tensor",
    fake=lambda rows, index, counts, size, *_: rows.new_empty((size, *rows.shape[1:])),
    run=_return, flops=no_flops,
)  # fmt: skip


def _forward(y: Tensor, index: Tensor, counts: Tensor, group: str) -> Tensor:
    found: Tensor = torch.ops.mmcore.fetched_rows(y, index, counts, group, "reference")
    return found


def _save(ctx: Any, inputs: tuple[Tensor, Tensor, Tensor, str], output: Tensor) -> None:
    y, index, counts, ctx.group = inputs
    ctx.size = y.shape[0]
    ctx.save_for_backward(index, counts)


def _backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    index, counts = ctx.saved_tensors
    arguments = (gradient, index, counts, ctx.size, ctx.group, "reference")
    return torch.ops.mmcore.returned_rows(*arguments), None, None, None


_call = differentiable(_forward, save=_save, backward=_backward)


def call(y: Tensor, index: Tensor, counts: Tensor, group: str) -> Tensor:
    """The rows, differentiable with respect to `y`."""
    found: Tensor = _call(y, index, counts, group)
    return found
