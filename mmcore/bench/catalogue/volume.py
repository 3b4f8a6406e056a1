"""GRAM: the volume of an anchor's row with those of the other modalities."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.formulas import both_ways
from mmcore.bench.catalogue.multimodal import modalities
from mmcore.bench.catalogue.row import Loss, Row, Variant


def determinant(matrix: list[list[Tensor]]) -> Tensor:
    """Along the first row."""
    if len(matrix) == 1:
        return matrix[0][0]
    total = torch.zeros_like(matrix[0][0])
    for k, entry in enumerate(matrix[0]):
        minor = [row[:k] + row[k + 1 :] for row in matrix[1:]]
        total = total + (-1) ** k * entry * determinant(minor)
    return total


def gram_matrix(anchor: Tensor, others: list[Tensor]) -> list[list[Tensor]]:
    """Entry by entry, each (N, N): of every row of the anchor with every row of the others."""
    ones = anchor.new_ones(len(anchor), len(anchor))
    across = [anchor @ z.T for z in others]
    matrix = [[anchor.square().sum(1)[:, None] * ones, *across]]
    for own, z in zip(across, others, strict=True):
        matrix.append([own, *((z * other).sum(1) * ones for other in others)])
    return matrix


def gram(
    features: Mapping[str, Tensor], scale: Tensor, *, anchor: str, label_smoothing: float = 0.0
) -> Tensor:
    """Cross-entropy of the volumes both ways: the smaller, the more alike."""
    others = [z for name, z in features.items() if name != anchor]
    square = determinant(gram_matrix(features[anchor], others))
    volume = torch.where(square > 0, torch.where(square > 0, square, 1).sqrt(), 0)
    return both_ways(-scale * volume, label_smoothing=label_smoothing)


def by_determinants() -> Loss:
    """Three modalities by torch.linalg.det."""

    def loss(features: Mapping[str, Tensor], scale: float) -> Tensor:
        y, x, z = features.values()
        matrix = gram_matrix(x, [y, z])
        volume = torch.stack([torch.stack(row, -1) for row in matrix], -1).det().abs().sqrt()
        return both_ways(-scale * volume)

    return loss


def of_modalities(count: int, smoothing: float, **more: Any) -> Variant:
    """So many modalities, of which the text is the anchor."""
    return Variant(
        f"{count} modalities{', smoothed' * bool(smoothing)}",
        {"anchor": "text", "label_smoothing": smoothing},
        lambda draw: modalities(draw, count),
        axes={"modalities": count, "smoothing": smoothing},
        products=4 * (count - 1),
        **more,
    )


GRAM = Row(
    functional.gram_loss,
    nn.GramLoss,
    gram,
    modalities,
    (
        of_modalities(3, 0.0, title="gram volume", peers={"torch-eager": by_determinants}),
        *(
            of_modalities(count, smoothing)
            for count, smoothing in product((2, 3, 4), (0.0, 0.1))
            if (count, smoothing) != (3, 0.0)
        ),
    ),
    kernels="none",
)

ROWS = (GRAM,)
