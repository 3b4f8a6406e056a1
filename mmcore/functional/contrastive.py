"""Softmax objectives between two sides: CLIP, InfoNCE."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.queue import own_logits
from mmcore.functional.reductions import (
    as_loss,
    log_add_exp,
    mean_of,
    mean_products,
    weighted_mean,
)
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import clip as clip_op

DIRECTIONS = ("both", "rows", "columns")
NEGATIVES = ("all", "queue")


@scale_not_temperature
def clip_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    group: Tensor | None = None,
    direction: str = "both",
    backend: str | None = None,
) -> Tensor:
    """Symmetric contrastive loss of CLIP: row i of `x` and row i of `y` belong together.

    Equivalent, without ever storing the (N, N) logits, to ::

        logits = scale * x @ y.T + bias
        target = torch.arange(N)
        (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    Args:
        x: (N, D), any floating-point dtype; rows of unit length, as `l2_normalize` or `project`
            leave them.
        y: (N, D), in the dtype of `x`.
        scale: a number or a one-element tensor, at least 0: the inverse temperature, not its
            logarithm.
        bias: a number, a one-element tensor or None. It cancels: the loss does not depend on it.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``: how much of each target is spread
            evenly over all columns.
        weight: (N,), none below 0, in the dtype of `x` or float32: how much each pair counts. The
            loss is Σ wᵢ·lossᵢ / Σ wᵢ.
        group: (N,) integers. Pairs of equal groups are no negatives of each other, such as images
            of the same caption; -1 is equal to nothing. Every row keeps its own positive.
        direction: ``"both"``, or the cross-entropy of the ``"rows"`` or of the ``"columns"`` alone.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs), for 16-bit inputs too.

    Raises:
        TypeError, ValueError: as `softmax_similarity`, or `x` and `y` differ in their rows, an
            option is out of its range, or `label_smoothing` is asked for together with `group`.
            On a GPU, or under torch.compile, weights are not looked at: all 0 give NaN, and those
            below 0 count as they are.

    Memory:
        As `softmax_similarity`: O(N), against several copies of N² in plain PyTorch.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        https://arxiv.org/abs/2103.00020

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8)).requires_grad_()
        >>> y = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss = mmcore.functional.clip_loss(x, y, scale=100.0)
        >>> loss.backward()
        >>> x.grad.shape
        torch.Size([4, 8])
    """
    warn_of_local_batch("clip_loss")
    x, y = operands.multiplied(x, y)
    check.check_features(x, y)
    check.check_same_rows("y", y, x)
    check.check_scale("scale", scale)
    check.check_choice("direction", direction, DIRECTIONS)
    group, label_smoothing = _checked_options(x, group, label_smoothing)
    options = (bias, weight, group, label_smoothing or None)
    is_plain = direction == "both" and all(each is None for each in options)
    if is_plain and clip_op.serves(x, y, backend):
        return clip_op.call(x, y, check.as_scalar("scale", scale, x), backend=backend)
    if direction == "columns":
        x, y = y, x
    statistics = softmax_similarity(
        x, y, scale, bias, row_group=group, col_group=group, columns=direction == "both",
        backend=backend,
    )  # fmt: skip
    weight = check.check_weight("weight", weight, x)
    row_lse, col_lse, row_pos, col_pos = statistics
    if direction == "both" and label_smoothing == 0:
        # The diagonal is the positives of rows and of columns.
        return as_loss(weighted_mean((row_lse + col_lse) / 2 - row_pos, weight), x)
    row_loss = row_lse - _smoothed(row_pos, x, y, scale, bias, label_smoothing)
    if direction != "both":
        return as_loss(weighted_mean(row_loss, weight), x)
    col_loss = col_lse - _smoothed(col_pos, y, x, scale, bias, label_smoothing)
    loss = (weighted_mean(row_loss, weight) + weighted_mean(col_loss, weight)) / 2
    return as_loss(loss, x)


def _checked_options(
    x: Tensor, group: Tensor | None, label_smoothing: float
) -> tuple[Tensor | None, float]:
    if group is not None:
        group = check.check_indices("group", group, x.shape[0], "x", x)
    label_smoothing = check.check_fraction("label_smoothing", label_smoothing)
    if label_smoothing and group is not None:
        raise ValueError("label_smoothing must be 0 where group is given: it spreads over all")
    return group, label_smoothing


def _smoothed(
    positive: Tensor, x: Tensor, y: Tensor, scale: float | Tensor, bias: float | Tensor | None,
    label_smoothing: float,
) -> Tensor:  # fmt: skip
    """(1 − ε)·pos + ε·mean_j s_ij."""
    if not label_smoothing:
        return positive
    mean = mean_products(x, y) * check.as_scalar("scale", scale, x)
    if bias is not None:
        mean = mean + check.as_scalar("bias", bias, x)
    return (1 - label_smoothing) * positive + label_smoothing * mean.reshape(positive.shape)


@scale_not_temperature
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
    if target is None and queue is None:
        warn_of_local_batch("info_nce_loss")
    query, key, queue = _multiplied(query, key, queue)
    target = _checked_sides(query, key, queue, target, query_group, key_group, log_q, negatives)
    check.check_scale("scale", scale)
    margin = check.check_not_negative("margin", margin)
    denominator = "negatives" if margin or negatives == "queue" else "all"

    def statistics(keys: Tensor, place: slice, target: Tensor | None) -> SoftmaxStatistics:
        return softmax_similarity(
            query, keys, scale, target=target, row_group=query_group, denominator=denominator,
            col_group=None if key_group is None else key_group[place],
            col_bias=None if log_q is None else -log_q[place], columns=False, backend=backend,
        )  # fmt: skip

    if queue is not None:
        queue_lse = statistics(queue, slice(key.shape[0], None), _no_target(query)).row_lse
    if negatives == "queue":
        row_lse, positive = queue_lse, own_logits(query, key, scale, target, log_q)
    else:
        row_lse, _, positive, _ = statistics(key, slice(key.shape[0]), target)
        row_lse = row_lse if queue is None else log_add_exp(row_lse, queue_lse)
    if margin:
        positive = positive - margin * check.as_scalar("scale", scale, query).double()
    loss = row_lse - positive if denominator == "all" else F.softplus(row_lse - positive)
    return as_loss(loss.mean() if target is None else mean_of(loss, target != -1), query)


def _no_target(x: Tensor) -> Tensor:
    return torch.full(x.shape[:1], -1, device=x.device)


def _multiplied(
    query: Tensor, key: Tensor, queue: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    sides = (query, key) if queue is None else (query, key, queue)
    query, key, *queues = operands.multiplied(*sides)
    return query, key, queues[0] if queues else None


def _checked_sides(
    query: Tensor, key: Tensor, queue: Tensor | None, target: Tensor | None,
    query_group: Tensor | None, key_group: Tensor | None, log_q: Tensor | None, negatives: str,
) -> Tensor | None:  # fmt: skip
    """The target, int64; checked as `softmax_similarity` does, by the names that they have here."""
    check.check_features(query, key, "query", "key")
    if target is not None:
        target = check.check_indices("target", target, query.shape[0], "query", query)
    elif key.shape[0] < query.shape[0]:
        raise ValueError(
            f"target must be given where query has more rows than key: got {query.shape[0]} and "
            f"{key.shape[0]}"
        )
    keys, keys_name = key.shape[0], "key"
    check.check_choice("negatives", negatives, NEGATIVES)
    if negatives == "queue" and queue is None:
        raise ValueError("queue must be given where negatives is 'queue', got None")
    if queue is not None:
        check.check_features(query, queue, "query", "queue")
        keys, keys_name = keys + queue.shape[0], "key and queue"
    groups = {"query_group": query_group, "key_group": key_group}
    sides = (("query_group", query.shape[0], "query"), ("key_group", keys, keys_name))
    for name, size, of in sides:
        if groups[name] is not None:
            check.check_indices(name, groups[name], size, of, query)
        elif any(group is not None for group in groups.values()):
            raise ValueError(f"{name} must be given together with the other side's, got None")
    check.check_parameter("log_q", log_q, keys, query)
    return target
