"""Two sides: CLIP, InfoNCE, SigLIP."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import (
    both_ways,
    cross_entropy,
    diagonal,
    identity,
    masked,
    same,
)
from mmcore.bench.catalogue.packages import open_clip_losses
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant


def two_sides(draw: Draw) -> Arguments:
    """Features of two sides, row by row, and the scale."""
    x, y = draw.sides()
    return {"x": x, "y": y, "scale": draw.scalar_scale()}


# CLIP


def clip(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    group: Tensor | None = None,
    direction: str = "both",
) -> Tensor:
    """Cross-entropy of each row against its own column, and of each column against its row."""
    logits = scale * (x @ y.T)
    if bias is not None:
        logits = logits + bias
    if group is not None:
        logits = masked(logits, ~same(group, group) | identity(x))
    sides = {"rows": [logits], "columns": [logits.T], "both": [logits, logits.T]}[direction]
    if weight is None:
        means = [cross_entropy(side, label_smoothing=label_smoothing) for side in sides]
    else:
        options: dict[str, Any] = {"label_smoothing": label_smoothing, "reduction": "none"}
        losses = [cross_entropy(side, **options) for side in sides]
        means = [(weight * loss).sum() / weight.sum() for loss in losses]
    return torch.stack(means).mean()


def weights(draw: Draw) -> Arguments:
    """Some of them 0."""
    weight = draw.uniform(draw.rows)
    weight[::7] = 0
    return {"weight": weight}


def open_clip_clip() -> Loss:
    """ClipLoss, alone on its device."""
    loss = open_clip_losses().ClipLoss()
    return lambda x, y, scale: loss(x, y, scale)


def clip_of_one_product(x: Tensor, y: Tensor, scale: float | Tensor, **options: float) -> Tensor:
    """As one writes it: one matrix and its transpose; the scale goes to the features."""
    return both_ways(scale * x @ y.T, **options)


CLIP = Row(
    functional.clip_loss,
    nn.ClipLoss,
    clip,
    two_sides,
    (
        Variant(title="clip", peers={"open_clip": open_clip_clip}),
        Variant(
            "label smoothing",
            {"label_smoothing": 0.1},
            title="clip, label smoothing",
            peers={"torch-eager": lambda: partial(clip_of_one_product, label_smoothing=0.1)},
        ),
        Variant(
            "label smoothing, bias", {"label_smoothing": 0.1}, lambda draw: {"bias": draw.number(3)}
        ),
        *(Variant(f"weights, {way}", {"direction": way}, weights) for way in ("both", "rows")),
        Variant("weights, columns", {"direction": "columns"}, weights),
        Variant("groups", inputs=lambda draw: {"group": draw.integers(-1, 12)}),
    ),
)

# InfoNCE


def info_nce(
    query: Tensor,
    key: Tensor,
    scale: Tensor,
    *,
    queue: Tensor | None = None,
    target: Tensor | None = None,
    query_group: Tensor | None = None,
    key_group: Tensor | None = None,
    log_q: Tensor | None = None,
    margin: float = 0.0,
    negatives: str = "all",
) -> Tensor:
    """Cross-entropy of each query over the keys and the queue, or its own key and the queue."""
    keys = key if queue is None else torch.cat([key, queue])
    target = diagonal(query) if target is None else target
    logits = scale * (query @ keys.T)
    positive = target[:, None] == diagonal(keys)
    if log_q is not None:
        logits = logits - log_q
    if margin:
        logits = logits - margin * scale * positive
    if query_group is not None and key_group is not None:
        logits = masked(logits, ~same(query_group, key_group) | positive)
    if negatives == "queue":
        logits = masked(logits, positive | (diagonal(keys) >= len(key)))
    return F.cross_entropy(logits, target, ignore_index=-1)


def queries(draw: Draw) -> Arguments:
    """Queries and their keys."""
    query, key = draw.sides()
    return {"query": query, "key": key, "scale": draw.scalar_scale()}


def more_keys(draw: Draw) -> Arguments:
    """Extra keys that belong to no query. Some queries have no positive, some share another's."""
    key = torch.cat([queries(draw)["key"], draw.unit()])
    return {"key": key, "target": draw.integers(-1, len(key))}


def sampling_bias(draw: Draw) -> Arguments:
    """How often each key is drawn."""
    return {"log_q": draw.uniform(draw.rows).log()}


def queue_in_groups(draw: Draw) -> Arguments:
    """A queue, of which some keys are of the query's own group."""
    size = 2 * draw.rows
    groups = {
        "query_group": draw.integers(-1, 30),
        "key_group": draw.integers(-1, 30, size),
    }
    return {"queue": draw.unit(), "log_q": draw.uniform(size).log(), **groups}


def queue_and_targets(draw: Draw) -> Arguments:
    """Likewise, and queries that share a positive or have none."""
    return queue_in_groups(draw) | {"target": draw.integers(-1, draw.rows)}


def of_one_product() -> Loss:
    """As one writes it: keys and queue in one matrix."""

    def loss(query: Tensor, key: Tensor, scale: float, queue: Tensor) -> Tensor:
        return F.cross_entropy(scale * query @ torch.cat([key, queue]).T, diagonal(query))

    return loss


def in_blocks() -> Loss:
    """InfoNCE with the queue apart, for which no gradient is computed then."""

    def loss(query: Tensor, key: Tensor, scale: float, queue: Tensor) -> Tensor:
        of_keys, of_queue = scale * query @ key.T, scale * query @ queue.T
        lse = torch.logaddexp(of_keys.logsumexp(1), of_queue.logsumexp(1))
        return (lse - of_keys.diagonal()).mean()

    return loss


INFO_NCE = Row(
    functional.info_nce_loss,
    nn.InfoNceLoss,
    info_nce,
    queries,
    (
        Variant("more keys", inputs=more_keys, columns=2, is_large=True, products=8),
        Variant("sampling bias and margin", {"margin": 0.2}, sampling_bias),
        Variant("queue in groups", inputs=queue_in_groups, columns=2),
        Variant("queue in groups, margin", {"margin": 0.2}, queue_in_groups, columns=2),
        Variant("queue alone", {"negatives": "queue"}, lambda draw: {"queue": draw.unit()}),
        Variant("queue alone in groups", {"negatives": "queue"}, queue_and_targets),
        Variant(
            "queue alone in groups, margin", {"negatives": "queue", "margin": 0.2}, queue_in_groups
        ),
        Variant(
            "queue",
            inputs=lambda draw: {"queue": draw.unit()},
            title="info_nce, queue of {rows:,}",
            # The queue has no gradient.
            products=7,
            columns=2,
            frozen=("queue",),
            peers={"torch-eager": of_one_product, "torch-eager-blocks": in_blocks},
        ),
    ),
)

# SigLIP


def siglip(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    bias: Tensor | float = 0.0,
    *,
    row_label: Tensor | None = None,
    col_label: Tensor | None = None,
) -> Tensor:
    """Each pair told apart by itself: positives on the diagonal, or where labels are equal."""
    is_labelled = row_label is not None and col_label is not None
    positive = same(row_label, col_label) if is_labelled else identity(x)  # type: ignore[arg-type]
    logits = scale * (x @ y.T) + bias
    return -F.logsigmoid(torch.where(positive, logits, -logits)).sum() / len(x)


def with_bias(draw: Draw) -> Arguments:
    """Two sides, and the bias that training starts from."""
    return two_sides(draw) | {"bias": draw.number(-10.0)}


def labels(draw: Draw) -> Arguments:
    """Several positives, or none, of each row; another bias."""
    row, col = draw.integers(-1, 9), draw.integers(-1, 9)
    return {"bias": draw.number(-5.0), "row_label": row, "col_label": col}


def open_clip_siglip() -> Loss:
    """SigLipLoss, alone on its device."""
    loss = open_clip_losses().SigLipLoss()
    return lambda x, y, scale, bias: loss(x, y, scale, bias)


SIGLIP = Row(
    functional.siglip_loss,
    nn.SigLipLoss,
    siglip,
    with_bias,
    (
        Variant(title="siglip", peers={"open_clip": open_clip_siglip}),
        Variant("labels", inputs=labels),
    ),
    products=3,
)

ROWS = (CLIP, INFO_NCE, SIGLIP)
