"""Objectives of prefixes of the features, which are features of their own: Matryoshka."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.contrastive import clip_loss
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.projection import l2_normalize
from mmcore.functional.ranks import ProcessGroup, as_ranks, handed_on, tells_ranks
from mmcore.functional.reductions import as_loss
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import prefix_similarity as prefix_op
from mmcore.ops.prefix_similarity import PrefixInputs

Objective = Callable[..., Tensor]
EPS = 1e-12


@scale_not_temperature
@tells_ranks
def matryoshka_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    dims: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    group: Tensor | None = None,
    objective: Objective | None = None,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Matryoshka: the loss of CLIP, or another, of several prefixes of the features at once.

    Equivalent, without ever storing a matrix of logits, to ::

        sum(
            w * clip_loss(F.normalize(x[:, :d]), F.normalize(y[:, :d]), scale, group=group)
            for d, w in zip(dims, weights)
        )

    Args:
        x: (N, D), any floating-point dtype, normalised or not: each prefix is normalised anew, as
            it will be where it is used. One of width 1 is ±1, and its gradient rounding.
        y: (N, D), in the dtype of `x`; row i belongs to row i of `x`.
        scale: a number or a one-element tensor, at least 0: every prefix's inverse temperature.
        dims: widths of the prefixes, ascending, from 1 to D.
        weights: of each prefix, at least 0 and not all 0; default 1.
        group: (N,) integers, as in `clip_loss`; without an `objective` only.
        objective: a function of (x, y, scale, backend=...) in place of the loss of CLIP. The
            prefixes are then taken one after the other. Where a group is given it also gets
            `process_group`, `gradients` and `exchange` by name.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs): a weighted sum, as in the paper.

    Raises:
        TypeError, ValueError: as `softmax_similarity`; `x` and `y` differ in their rows; dims do
            not ascend or leave [1, D]; weights are of another number, below 0 or all 0.

    Memory:
        As `softmax_similarity`, 50·K·N bytes a side for K prefixes, and a block of the matrix per
        prefix and thread. The CPU's kernel walks the matrix once: products over the depth serve
        every prefix on the way, and gradients of prefixes are added up before they are multiplied,
        so that K prefixes cost little more than the longest. Elsewhere prefixes are taken one after
        the other, with a normalised copy of one at a time.

    Reference:
        Kusupati et al., Matryoshka Representation Learning, 2022, https://arxiv.org/abs/2205.13147

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(4, 16), torch.randn(4, 16)
        >>> mmcore.functional.matryoshka_loss(x, y, 20.0, dims=(4, 8, 16)).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    if objective is None:
        warn_of_local_batch("matryoshka_loss", process_group)
    x, y = operands.promoted(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    check.check_scale("scale", scale)
    dims = _checked_dims(dims, x)
    weight_of = _checked_weights(dims, weights)
    if objective is not None and group is not None:
        raise ValueError("group must be None where an objective is given")
    if objective is None and ranks is not None:
        objective = partial(clip_loss, group=group)
    if objective is not None:
        over = handed_on(process_group, gradients, exchange) | {"backend": backend}
        losses = [_loss_of_prefix(objective, x, y, scale, end, over) for end in dims]
    else:
        losses = _clip_losses(x, y, scale, dims, group, backend)
    total = torch.zeros((), dtype=torch.float64, device=x.device)
    for weight, loss in zip(weight_of, losses, strict=True):
        total = total + weight * loss
    return as_loss(total, x)


def _loss_of_prefix(
    objective: Objective, x: Tensor, y: Tensor, scale: float | Tensor, end: int,
    options: dict[str, Any],
) -> Tensor:  # fmt: skip
    """float64"""
    x, y = (l2_normalize(z[:, :end], backend=options["backend"]) for z in (x, y))
    return objective(x, y, scale, **options).double()


def _clip_losses(
    x: Tensor, y: Tensor, scale: float | Tensor, dims: list[int], group: Tensor | None,
    backend: str | None,
) -> list[Tensor]:  # fmt: skip
    """The loss of CLIP of every prefix, float64."""
    scale = check.as_scalar("scale", scale, x)
    if group is not None:
        group = check.check_indices("group", group, x.shape[0], "x", x)
    target = torch.arange(x.shape[0], device=x.device)
    inputs = PrefixInputs(
        x=x, y=y, scale=scale, ends=dims, eps=EPS, target=target, row_group=group,
        col_group=group,
    )  # fmt: skip
    found = prefix_op.call(inputs, backend=backend)
    losses: list[Tensor] = list(((found.row_lse + found.col_lse) / 2 - found.row_pos).mean(1))
    return losses


def _checked_dims(dims: Sequence[int], x: Tensor) -> list[int]:
    given = check.as_sequence("dims", dims)
    ends = [check.as_integer("dims", end, "whole numbers") for end in given]
    for before, end in pairwise([0, *ends]):
        if not before < end <= x.shape[1]:
            raise ValueError(
                f"dims must ascend from 1 to at most the {x.shape[1]} columns of x, "
                f"got {tuple(ends)}"
            )
    if not ends:
        raise ValueError("dims must name at least one prefix, got none")
    return ends


def _checked_weights(dims: Sequence[int], weights: Sequence[float] | None) -> list[float]:
    if weights is None:
        return [1.0] * len(dims)
    given = check.as_sequence("weights", weights)
    if len(given) != len(dims):
        raise ValueError(f"weights must be {len(dims)}, one for each of dims, got {len(given)}")
    found = [check.check_not_negative("weights", weight) for weight in given]
    if not any(found):
        raise ValueError(f"weights must be above 0 for at least one of dims, got {tuple(found)}")
    return found
