"""Logits of each query with its own key, row by row: no matrix of queries and keys is computed."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check


def own_logits(
    query: Tensor, key: Tensor, scale: float | Tensor, target: Tensor | None, log_q: Tensor | None
) -> Tensor:
    """scale·⟨query_i, key_t(i)⟩ − log_q_t(i), float64, (N,).

    Anything stands where there is no target. One out of range is an error, or NaN where the host
    does not see it.
    """
    count = query.shape[0]
    if target is None:
        own, rate = key[:count], None if log_q is None else log_q[:count]
    else:
        _check_target(target, key.shape[0])
        at = target.clamp(0, key.shape[0] - 1)
        own, rate = key[at], None if log_q is None else log_q[at]
    # No matrix product, which autocast would round.
    logits = check.as_scalar("scale", scale, query) * (query.double() * own.double()).sum(1)
    # As in softmax_similarity: of an infinite logit the loss might be a number.
    logits = logits.masked_fill(~logits.isfinite(), torch.nan)
    if rate is not None:
        logits = logits - rate
    return (
        logits if target is None else logits.masked_fill(_is_outside(target, len(key)), torch.nan)
    )


def _is_outside(target: Tensor, keys: int) -> Tensor:
    return (target < -1) | (target >= keys)


def _check_target(target: Tensor, keys: int) -> None:
    if not check.has_values(target):
        return
    outside = target[_is_outside(target, keys)]
    if outside.numel():
        raise ValueError(f"target must be in [-1, {keys}), got {outside[0].item()}")
