"""Several modalities: all pairs of them, and Symile."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations, product
from typing import Any

import torch
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.contrastive import clip, open_clip_clip, siglip
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import cross_entropy
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

NAMES = ("image", "text", "audio", "depth")
Pair = tuple[str, str]


def modalities(draw: Draw, count: int = 3) -> Arguments:
    """Features by name, and one scale."""
    features = dict(zip(NAMES, draw.sides(count), strict=False))
    return {"features": features, "scale": draw.scalar_scale()}


# Pairs of modalities


def chosen_pairs(names: Sequence[str], pairs: str | Sequence[Pair]) -> list[Pair]:
    """All pairs, those with one modality, or those that are listed."""
    if pairs == "all":
        return list(combinations(names, 2))
    if isinstance(pairs, str):
        return [(pairs, name) for name in names if name != pairs]
    return list(pairs)


def matched(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Which rows of both sides have an id in common."""
    return (a[:, None] == b).nonzero(as_tuple=True)  # type: ignore[return-value]


def multimodal(
    features: Mapping[str, Tensor],
    scale: Tensor | Mapping[Pair, Tensor],
    bias: Tensor | Mapping[Pair, Tensor] | None = None,
    *,
    pairs: str | Sequence[Pair] = "all",
    ids: Mapping[str, Tensor] | None = None,
    weights: Mapping[Pair, float] | None = None,
    objective: str | Callable[..., Tensor] = "clip",
) -> Tensor:
    """The weighted mean of an objective over pairs, each of the rows that both have."""
    known: dict[str, Callable[..., Tensor]] = {"clip": clip, "siglip": siglip}
    loss = known[objective] if isinstance(objective, str) else objective
    total, whole = torch.zeros_like(next(iter(features.values()))).sum(), 0.0
    for pair in chosen_pairs(list(features), pairs):
        sides = [features[name] for name in pair]
        if ids is not None:
            rows = matched(*(ids[name] for name in pair))
            sides = [side[row] for side, row in zip(sides, rows, strict=True)]
        weight = 1.0 if weights is None else weights[pair]
        settings = [each[pair] if isinstance(each, Mapping) else each for each in (scale, bias)]
        given = settings if settings[1] is not None else settings[:1]
        total, whole = total + weight * loss(*sides, *given), whole + weight
    return total / whole


def settings_of_pairs(draw: Draw, pairs: str) -> Arguments:
    """A scale and a bias of its own for each pair."""
    chosen = chosen_pairs(NAMES[:3], pairs)
    scales = {pair: draw.number(draw.scale * (1 + 0.1 * i)) for i, pair in enumerate(chosen)}
    biases = {pair: draw.number(-0.1 * draw.scale - i) for i, pair in enumerate(chosen)}
    return {"scale": scales, "bias": biases}


def of_pairs(pairs: str, objective: str) -> Variant:
    """Each pair has settings of its own, and a weight where all are taken."""
    options: dict[str, Any] = {"pairs": pairs, "objective": objective}
    if pairs == "all":
        of_each = zip(chosen_pairs(NAMES[:3], pairs), (1.0, 0.0, 3.0), strict=True)
        options["weights"] = dict(of_each)
    return Variant(
        f"{objective}, pairs {pairs}",
        options,
        lambda draw: settings_of_pairs(draw, pairs),
        axes={"pairs": pairs, "objective": objective},
    )


def with_ids(draw: Draw) -> Arguments:
    """Some things lack a modality, and every modality has an order of its own."""
    features, ids = modalities(draw)["features"], {}
    for name, share in zip(features, (6, 5, 4), strict=True):
        ids[name] = draw.order()[: max(1, share * draw.rows // 7)]
    return {"features": {name: z[ids[name]] for name, z in features.items()}, "ids": ids}


def in_three_pairs(loss: Loss) -> Loss:
    """One pair after another."""

    def mean(features: Mapping[str, Tensor], scale: float) -> Tensor:
        pairs = combinations(features.values(), 2)
        return torch.stack([loss(x, y, scale) for x, y in pairs]).mean()

    return mean


MULTIMODAL = Row(
    functional.multimodal_loss,
    nn.MultimodalLoss,
    multimodal,
    modalities,
    (
        Variant(
            "three pairs",
            axes={"pairs": "all", "objective": "clip", "ids": None},
            title="three modalities, all pairs",
            peers={
                "torch-eager": lambda: in_three_pairs(open_clip_clip()),
                "mmcore-pairs": lambda: in_three_pairs(functional.clip_loss),
            },
        ),
        Variant(
            "an anchor",
            {"pairs": "text"},
            axes={"pairs": "text", "objective": "clip", "ids": None},
            products=8,
            is_large=True,
        ),
        *(of_pairs(*each) for each in product(("all", "text"), ("clip", "siglip"))),
        Variant("ids", inputs=with_ids, axes={"ids": "some"}),
    ),
    products=12,
    scales=(1.0, 14.0, 50.0),
)

# Symile


def symile(features: Mapping[str, Tensor], scale: Tensor, *, negatives: str = "tuples") -> Tensor:
    """Each modality against the product of the others, of whole rows or of shuffled ones.

    The orders of the rows are the next that torch draws.
    """
    towers = list(features.values())
    if negatives == "shuffled":
        device = towers[0].device
        return of_shuffled(towers, [torch.randperm(len(z), device=device) for z in towers], scale)
    losses = []
    for m, x in enumerate(towers):
        key = torch.stack([*towers[:m], *towers[m + 1 :]]).prod(0)
        losses.append(cross_entropy(scale * (x @ key.T)))
    return torch.stack(losses).mean()


def of_shuffled(towers: Sequence[Tensor], order: Sequence[Tensor], scale: Tensor) -> Tensor:
    """Of each anchor in the order of its own rows, each row's keys told apart one by one."""
    losses, positive = [], scale * torch.stack(list(towers)).prod(0).sum(1)
    for m, x in enumerate(towers):
        others = [z[rows] for k, (z, rows) in enumerate(zip(towers, order, strict=True)) if k != m]
        logits = scale * (x @ torch.stack(others).prod(0).T)
        # Slot j holds row order[m][j] of modality m: there row i = order[m][j] finds its positive.
        is_own = order[m] == torch.arange(len(x), device=x.device)[:, None]
        logits = torch.where(is_own, positive[:, None], logits)
        losses.append((logits.logsumexp(1) - positive).mean())
    return torch.stack(losses).mean()


def symile_of_three() -> Loss:
    """As one writes it; the scale goes to the features."""

    def loss(features: Mapping[str, Tensor], scale: float) -> Tensor:
        x, y, z = features.values()
        sides = ((x, y * z), (y, x * z), (z, x * y))
        return torch.stack([cross_entropy(scale * one @ key.T) for one, key in sides]).mean()

    return loss


def of_modalities(count: int, negatives: str, **more: Any) -> Variant:
    """Tuples or shuffled rows of so many modalities."""
    return Variant(
        f"{count} modalities{', shuffled' * (negatives == 'shuffled')}",
        {"negatives": negatives},
        lambda draw: modalities(draw, count),
        axes={"modalities": count, "negatives": negatives},
        products=4 * count,
        **more,
    )


SYMILE = Row(
    functional.symile_loss,
    nn.SymileLoss,
    symile,
    modalities,
    (
        of_modalities(3, "tuples", title="symile", peers={"torch-eager": symile_of_three}),
        of_modalities(2, "tuples"),
        of_modalities(4, "tuples"),
        of_modalities(2, "shuffled"),
        of_modalities(3, "shuffled", is_large=True),
    ),
    scales=(1.0, 50.0, 100.0),
)

ROWS = (MULTIMODAL, SYMILE)
