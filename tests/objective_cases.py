"""Inputs for tests of objectives, and the comparison with a plain formula in float64."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from torch import Tensor

ROWS, WIDTH = 60, 24
# For each scale. Fewer leave too much to luck: a result that is one number may be exact by chance.
DRAWS = 6


def unit_rows(rows: int = ROWS) -> Tensor:
    return F.normalize(torch.randn(rows, WIDTH), dim=1)


def near(x: Tensor, noise: float = 0.5) -> Tensor:
    return F.normalize(x + noise * F.normalize(torch.randn_like(x), dim=1), dim=1)


def draws(kind: str, scales: Sequence[float] = (1.0, 14.0, 100.0)) -> list[list[Tensor]]:
    """Two sides and a scale: random, with duplicates, near convergence."""
    found = []
    for scale in scales:
        for _ in range(DRAWS):
            x = unit_rows()
            y = near(x, 0.05 if kind == "near" else 2.0)
            if kind == "duplicates":
                x[30:], y[40:] = x[:30].clone(), y[:20].clone()
            found.append([x, y, torch.tensor(scale)])
    return found


def draws_of_several(
    kind: str, modalities: int, scales: Sequence[float], rows: int = ROWS
) -> list[list[Tensor]]:
    """Rows of each modality, then the scale."""
    found = []
    for scale in [scale for scale in scales for _ in range(DRAWS)]:
        first = unit_rows(rows)
        features = [first]
        for _ in range(modalities - 1):
            z = near(first, 0.3 if kind == "near" else 2.0)
            if kind == "duplicates":
                z[rows // 2 :] = z[: rows - rows // 2].clone()
            features.append(z)
        found.append([*features, torch.tensor(scale)])
    return found


def check(
    ours: Callable[..., Tensor],
    plain: Callable[..., Tensor],
    inputs: list[list[Tensor]],
    any_order: Callable[[], Tensor] = lambda: torch.randperm(WIDTH),
) -> None:
    """Value and every gradient; plain PyTorch in other orders of its columns as well.

    Scales apart, because the errors of the largest would hide those of the others.
    """

    def reordered(*tensors: Tensor) -> Sequence[Tensor]:
        order = any_order()
        return [plain(*(t[:, order] if t.ndim == 2 else t for t in tensors))]

    formulas = [lambda *a: [plain(*a)], reordered, reordered]
    names = ["loss", *(f"gradient {i}" for i in range(len(inputs[0])))]
    by_scale: dict[float, list[list[Tensor]]] = {}
    for one in inputs:
        by_scale.setdefault(one[-1].item() if one[-1].ndim == 0 else 1.0, []).append(one)
    for same in by_scale.values():
        check_against_eager(lambda *a: [ours(*a)], formulas, same, names)


KINDS = ["random", "duplicates", "near"]
every_kind = pytest.mark.parametrize("kind", KINDS)


def cross_entropy(logits: Tensor, target: Tensor, **options: Any) -> Tensor:
    return F.cross_entropy(logits, target, **options)


def masked(logits: Tensor, keep: Tensor) -> Tensor:
    return logits.masked_fill(~keep, -math.inf)
