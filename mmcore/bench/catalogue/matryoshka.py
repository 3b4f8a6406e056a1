"""Matryoshka: the loss of every prefix of the columns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.contrastive import clip, open_clip_clip, two_sides
from mmcore.bench.catalogue.row import Loss, Row, Variant


def matryoshka(
    x: Tensor,
    y: Tensor,
    scale: Tensor,
    dims: Sequence[int],
    *,
    weights: Sequence[float] | None = None,
    group: Tensor | None = None,
    objective: Callable[..., Tensor] | None = None,
) -> Tensor:
    """The weighted sum of the objective, CLIP's unless given, of prefixes normalised anew."""
    total = x.new_zeros(())
    for end, weight in zip(dims, weights or [1.0] * len(dims), strict=True):
        first, second = (F.normalize(side[:, :end], dim=1) for side in (x, y))
        options: dict[str, Any] = {} if group is None else {"group": group}
        total = total + weight * (objective or clip)(first, second, scale, **options)
    return total


def four_prefixes(width: int) -> dict[str, Any]:
    """Ends that are no multiples of each other, and weights, of which one is 0."""
    dims = (width // 8, width // 3, 2 * width // 3 + 1, width)
    return {"dims": dims, "weights": (1.0, 0.5, 0.0, 2.0)}


def halves(width: int) -> dict[str, Any]:
    """Five prefixes, each half as long as the next one, as far as 6 columns are left."""
    return {"dims": tuple(sorted({max(width >> i, 6) for i in range(5)}))}


def within_prefixes(width: int, options: Mapping[str, Any]) -> Tensor:
    """Columns change places among those by which a prefix is longer than the one before it."""
    begins = (0, *options["dims"])
    parts = zip(begins, options["dims"], strict=False)
    return torch.cat([begin + torch.randperm(end - begin) for begin, end in parts])


def one_by_one() -> Loss:
    """What sentence-transformers' MatryoshkaLoss does: open_clip's loss once for each prefix."""
    loss = open_clip_clip()
    return lambda x, y, scale: matryoshka(x, y, scale, halves(x.shape[1])["dims"], objective=loss)


MATRYOSHKA = Row(
    functional.matryoshka_loss,
    nn.MatryoshkaLoss,
    matryoshka,
    two_sides,
    (
        Variant("four prefixes", four_prefixes),
        Variant("groups", four_prefixes, lambda draw: {"group": draw.integers(-1, 12)}),
        Variant(
            "five prefixes",
            halves,
            title="matryoshka, 5 prefixes",
            peers={
                "torch-eager": one_by_one,
                "mmcore-longest": lambda: functional.clip_loss,
            },
        ),
    ),
    order=within_prefixes,
    kernels="own",
)

ROWS = (MATRYOSHKA,)
