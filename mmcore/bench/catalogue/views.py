"""Two views of one modality: NT-Xent, DCL."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import diagonal, identity, masked
from mmcore.bench.catalogue.packages import (
    lightly_losses,
    metric_learning_losses,
    temperature,
)
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant


def views(draw: Draw) -> Arguments:
    """Two views of each thing."""
    first, second = draw.sides()
    return {"first": first, "second": second, "scale": draw.scalar_scale()}


# NT-Xent


def nt_xent(first: Tensor, second: Tensor, scale: Tensor) -> Tensor:
    """Each view against all others, of which the other view of its thing is the positive."""
    x = torch.cat([first, second])
    return F.cross_entropy(masked(scale * (x @ x.T), ~identity(x)), diagonal(x).roll(len(first)))


def lightly_nt_xent() -> Loss:
    """NTXentLoss, which normalises once more."""
    losses = lightly_losses("ntx_ent_loss")
    return lambda first, second, scale: losses.NTXentLoss(temperature(scale))(first, second)


def metric_learning_nt_xent() -> Loss:
    """NTXentLoss given a label for every pair of views; it holds N³ numbers."""
    losses = metric_learning_losses()

    def loss(first: Tensor, second: Tensor, scale: float) -> Tensor:
        label = diagonal(first).repeat(2)
        found: Tensor = losses.NTXentLoss(temperature(scale))(torch.cat([first, second]), label)
        return found

    return loss


NT_XENT = Row(
    functional.nt_xent_loss,
    nn.NtXentLoss,
    nt_xent,
    views,
    (
        Variant(
            title="nt_xent",
            columns=2,
            peers={"lightly": lightly_nt_xent},
            small_peers={"pytorch-metric-learning": metric_learning_nt_xent},
        ),
    ),
    products=8,
)

# DCL


def dcl(first: Tensor, second: Tensor, scale: Tensor, *, sigma: float | None = None) -> Tensor:
    """The positive is no part of its denominator; `sigma` weighs it by how near it is."""
    x, rows = torch.cat([first, second]), len(first)
    negative = ~identity(x) & ~identity(x).roll(rows, 1)
    logits = scale * (x @ x.T)
    positive = logits.roll(-rows, 1).diagonal()
    if sigma is not None:
        cosine = (first * second).sum(1).detach()
        weight = 2 - rows * (cosine / sigma).softmax(0)
        positive = torch.cat([weight, weight]) * positive
    return (masked(logits, negative).logsumexp(1) - positive).mean()


def lightly_dcl(name: str, **options: float) -> Loss:
    """DCLLoss or DCLWLoss, which normalise once more."""
    loss = getattr(lightly_losses("dcl_loss"), name)
    return lambda first, second, scale: loss(temperature(scale), **options)(first, second)


DCL = Row(
    functional.dcl_loss,
    nn.DclLoss,
    dcl,
    views,
    (
        Variant(title="dcl", columns=2, peers={"lightly": lambda: lightly_dcl("DCLLoss")}),
        Variant(
            "weighted",
            {"sigma": 0.5},
            title="dcl, weighted",
            columns=2,
            peers={"lightly": lambda: lightly_dcl("DCLWLoss", sigma=0.5)},
        ),
    ),
    products=8,
)

ROWS = (NT_XENT, DCL)
