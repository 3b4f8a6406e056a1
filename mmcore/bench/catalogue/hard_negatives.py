"""Hard negatives: weighted ones, and the hardest alone."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.contrastive import two_sides
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import identity, masked, same
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

# Weighted negatives


def hard_negative(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    *,
    hardness: float = 1.0,
    positive_prior: float = 0.0,
    positive_weight: float = 1.0,
) -> Tensor:
    """As the papers have it, without logarithms: it overflows in float32 from scale 88 on."""
    n = len(x) - 1

    def side(logits: Tensor) -> Tensor:
        positive = logits.diagonal()
        negatives = logits[~identity(logits)].view(n + 1, n)
        total = (n * (hardness * negatives).softmax(1) * negatives.exp()).sum(1)
        if positive_prior:
            total = (total - positive_prior * n * positive.exp()) / (1 - positive_prior)
            total = torch.maximum(total, n * (-scale.detach()).exp())
        return ((positive_weight * positive.exp() + total).log() - positive).mean()

    logits = scale * (x @ y.T)
    return (side(logits) + side(logits.T)) / 2


def in_logarithms() -> Loss:
    """Robinson's at hardness 0.5, without which logarithms it would overflow."""

    def side(logits: Tensor) -> Tensor:
        positive, n = logits.diagonal(), logits.shape[0] - 1
        negatives = masked(logits, ~identity(logits))
        total = (1.5 * negatives).logsumexp(1) - (0.5 * negatives).logsumexp(1)
        return F.softplus(total + torch.tensor(float(n)).log() - positive).mean()

    def loss(x: Tensor, y: Tensor, scale: float) -> Tensor:
        logits = scale * x @ y.T
        return (side(logits) + side(logits.T)) / 2

    return loss


HARD_NEGATIVE = Row(
    functional.hard_negative_loss,
    nn.HardNegativeLoss,
    hard_negative,
    two_sides,
    (
        Variant("hardness 0", {"hardness": 0.0}),
        Variant(
            "hardness 0.5",
            {"hardness": 0.5},
            title="hard_negative",
            peers={"torch-eager": in_logarithms},
        ),
        Variant("debiased", {"hardness": 1.0, "positive_prior": 0.1}),
        Variant("decoupled", {"hardness": 0.3, "positive_weight": 0.0}),
    ),
    products=8,
    scales=(1.0, 14.0),
)

# VSE++


def vse(x: Tensor, y: Tensor, *, margin: float = 0.2, group: Tensor | None = None) -> Tensor:
    """The hinge of the hardest negative of each row and of each column."""
    cosine, keep = x @ y.T, ~identity(x)
    if group is not None:
        keep = keep & ~same(group, group)
    negative = masked(cosine, keep)
    hinges = [(margin + negative.amax(side) - cosine.diagonal()).relu() for side in (0, 1)]
    return (hinges[0] + hinges[1]).mean()


def pairs(draw: Draw) -> Arguments:
    """Two sides without a scale."""
    x, y = draw.sides()
    return {"x": x, "y": y}


def crowded(draw: Draw) -> Arguments:
    """Half of the rows are of one group and have few negatives."""
    group = draw.integers(-1, 12)
    group[: draw.rows // 2] = 3
    return {"group": group}


VSE = Row(
    functional.vse_loss,
    nn.VseLoss,
    vse,
    pairs,
    (
        Variant(title="vse", peers={"torch-eager": lambda: vse}),
        Variant("no margin", {"margin": 0.0}),
        Variant("every row counts", {"margin": 2.5}),
        Variant("groups", inputs=crowded),
    ),
    products=1,
    # Of equal negatives plain PyTorch shares the gradient among all.
    kinds=("random", "near"),
    kernels="own",
)

ROWS = (HARD_NEGATIVE, VSE)
