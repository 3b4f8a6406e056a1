"""InfoNCE: one direction; more keys than queries, a queue."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.queue import own_logits
from mmcore.functional.ranks import ProcessGroup, Ranks, Rows, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, log_add_exp, mean_of, mean_of_rows
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity
from mmcore.functional.temperature import scale_not_temperature

NEGATIVES = ("all", "queue")


@scale_not_temperature
@tells_ranks
def info_nce_loss(
    query: Tensor,
    key: Tensor,
    scale: float | Tensor,
    *,
    queue: Tensor | None = None,
    target: Tensor | None = None,
    query_group: Tensor | None = None,
    key_group: Tensor | None = None,
    log_q: Tensor | None = None,
    margin: float = 0.0,
    negatives: str = "all",
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """InfoNCE: every query against all keys, of which one is its positive.

    Equivalent, without ever storing the logits, to ::

        keys = key if queue is None else torch.cat([key, queue])
        logits = scale * query @ keys.T - log_q
        logits[torch.arange(N), target] -= scale * margin
        if negatives == "queue":
            is_own = target[:, None] == torch.arange(len(keys))
            logits[~is_own & (torch.arange(len(keys)) < len(key))] = -inf
        F.cross_entropy(logits, target, ignore_index=-1)

    The keys may be more than the queries: hard negatives are rows after the positives,
    ``torch.cat([positives, negatives])``. Those without a gradient, such as MoCo's queue, cost a
    quarter to a third less as `queue`, and are not copied. `linear_cross_entropy_loss` is the same
    with the classes of a linear layer for keys.

    Args:
        query: (N, D), any floating-point dtype.
        key: (M, D), in the dtype of `query`.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        queue: (Q, D), further keys, which are nobody's positives, such as those of earlier batches.
        target: (N,) integers, the row of `key` that is each query's positive, -1 for none: such a
            query takes no part. Default: key i for query i, so M ≥ N.
        query_group, key_group: (N,) and (M + Q,) integers: keys of the query's group are no
            negatives; -1 is equal to nothing. The positive stays.
        log_q: (M + Q,), the logarithm of how often a key is sampled, taken off its logits.
        margin: at least 0, taken off the cosine of the positive.
        negatives: ``"all"`` keys but the positive, or those of the ``"queue"`` alone, as in MoCo:
            the other keys of the batch take no part, and their groups and `log_q` have no effect.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs): the mean over queries that have a positive; 0 if
        none has.

    Raises:
        TypeError, ValueError: as `softmax_similarity`; `margin` is below 0, or `negatives` is
            unknown, or ``"queue"`` without a queue.

    Memory:
        As `softmax_similarity`; a queue is a second call of it, with the gradient of `query` once
        more. With the queue alone there is one call, and float64 copies of `query` and of each
        query's own key.

    Reference:
        van den Oord et al., Representation Learning with Contrastive Predictive Coding, 2018,
        https://arxiv.org/abs/1807.03748. He et al., Momentum Contrast, 2019,
        https://arxiv.org/abs/1911.05722. Yi et al., Sampling-Bias-Corrected Neural Modeling, 2019,
        https://doi.org/10.1145/3298689.3346996

    Example:
        >>> import torch, mmcore
        >>> query = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> key, queue = (mmcore.functional.l2_normalize(torch.randn(n, 8)) for n in (4, 100))
        >>> loss = mmcore.functional.info_nce_loss(query, key, scale=14.0, queue=queue)
        >>> loss.shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    if target is None and queue is None:
        warn_of_local_batch("info_nce_loss", process_group)
    query, key, queue = _multiplied(query, key, queue)
    target = _checked_sides(
        query, key, queue, scale, target, query_group, key_group, log_q, negatives, ranks
    )  # fmt: skip
    margin = check.check_not_negative("margin", margin)
    denominator = "negatives" if margin or negatives == "queue" else "all"
    statistics = _statistics(key_group, log_q, partial(
        softmax_similarity, query, scale=scale, row_group=query_group, denominator=denominator,
        columns=False, process_group=ranks, backend=backend))  # fmt: skip
    if queue is not None:
        queue_lse = statistics(queue, slice(key.shape[0], None), _no_target(query)).row_lse
    if negatives == "queue":
        row_lse, positive = queue_lse, _own(query, key, scale, target, log_q, ranks)
    else:
        row_lse, _, positive, _ = statistics(key, slice(key.shape[0]), target)
        row_lse = row_lse if queue is None else log_add_exp(row_lse, queue_lse)
    if margin:
        positive = positive - margin * check.as_scalar("scale", scale, query).double()
    loss = row_lse - positive if denominator == "all" else F.softplus(row_lse - positive)
    return as_loss(_mean(loss, target, ranks), query)


def _statistics(
    key_group: Tensor | None, log_q: Tensor | None, against: Callable[..., SoftmaxStatistics]
) -> Callable[[Tensor, slice, Tensor | None], SoftmaxStatistics]:
    """A function of some keys, of their place among all, and of the target."""

    def statistics(keys: Tensor, place: slice, target: Tensor | None) -> SoftmaxStatistics:
        bias = None if log_q is None else -log_q[place]
        group = None if key_group is None else key_group[place]
        return against(keys, target=target, col_group=group, col_bias=bias)

    return statistics


def _mean(loss: Tensor, target: Tensor | None, ranks: Ranks | None) -> Tensor:
    """Over the queries that have a positive."""
    return mean_of_rows(loss, ranks) if target is None else mean_of(loss, target != -1, ranks)


def _own(
    query: Tensor, key: Tensor, scale: float | Tensor, target: Tensor | None,
    log_q: Tensor | None, ranks: Ranks | None,
) -> Tensor:  # fmt: skip
    """Logits of each query with its own key, which another rank may hold."""
    if ranks is None:
        return own_logits(query, key, scale, target, log_q)
    sizes = {"query": query.shape[0], "key": key.shape[0]}
    agreed = ranks.agree(
        "info_nce_loss", {"query": query, "key": key, "target": target}, sizes=sizes,
        target=target, columns="key", has_diagonal=target is None,
    )  # fmt: skip
    queries, keys = (Rows(agreed[:, i], ranks) for i in range(2))
    at = queries.numbers(query) if target is None else target
    own = keys.at(key, at)
    rate = None if log_q is None else keys.at(log_q[: key.shape[0], None], at)[:, 0]
    return own_logits(query, own, scale, None, rate)


def _no_target(x: Tensor) -> Tensor:
    return torch.full(x.shape[:1], -1, device=x.device)


def _multiplied(
    query: Tensor, key: Tensor, queue: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    sides = (query, key) if queue is None else (query, key, queue)
    query, key, *queues = operands.multiplied(*sides)
    return query, key, queues[0] if queues else None


def _checked_sides(
    query: Tensor, key: Tensor, queue: Tensor | None, scale: float | Tensor,
    target: Tensor | None, query_group: Tensor | None, key_group: Tensor | None,
    log_q: Tensor | None, negatives: str, ranks: Ranks | None,
) -> Tensor | None:  # fmt: skip
    """The target, int64; checked as `softmax_similarity` does, by the names that they have here."""
    may_be_empty = ranks is not None
    check.check_features(query, key, "query", "key", may_be_empty)
    if target is not None:
        target = check.check_indices("target", target, query.shape[0], "query", query)
    elif ranks is None and key.shape[0] < query.shape[0]:
        raise ValueError(
            f"target must be given where query has more rows than key: got {query.shape[0]} and "
            f"{key.shape[0]}"
        )
    keys, keys_name = key.shape[0], "key"
    check.check_choice("negatives", negatives, NEGATIVES)
    if negatives == "queue" and queue is None:
        raise ValueError("queue must be given where negatives is 'queue', got None")
    if queue is not None:
        check.check_features(query, queue, "query", "queue", may_be_empty)
        keys, keys_name = keys + queue.shape[0], "key and queue"
    groups = {"query_group": query_group, "key_group": key_group}
    sides = (("query_group", query.shape[0], "query"), ("key_group", keys, keys_name))
    for name, size, of in sides:
        if groups[name] is not None:
            check.check_indices(name, groups[name], size, of, query)
        elif any(group is not None for group in groups.values()):
            raise ValueError(f"{name} must be given together with the other side's, got None")
    check.check_parameter("log_q", log_q, keys, query)
    check.check_scale("scale", scale)
    return target
