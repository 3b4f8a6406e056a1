"""Geometry: alignment, uniformity, maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import identity
from mmcore.bench.catalogue.hard_negatives import pairs
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

# Alignment


def alignment(x: Tensor, y: Tensor, *, power: float = 2.0) -> Tensor:
    """The mean distance of pairs, to a power."""
    return (x - y).square().sum(1).sqrt().pow(power).mean()


ALIGNMENT = Row(
    functional.alignment_loss,
    nn.AlignmentLoss,
    alignment,
    pairs,
    tuple(Variant(f"power {power}", {"power": power}) for power in (1.0, 2.0, 3.0)),
    products=0,
    kernels="none",
)

# Uniformity


def uniformity(x: Tensor, *, temperature: float = 2.0) -> Tensor:
    """Logarithm of the mean Gaussian of all distances, from differences of rows."""
    square = (x[:, None] - x).square().sum(2)
    upper = square[torch.ones_like(square, dtype=torch.bool).triu(1)]
    return (-temperature * upper).exp().mean().log()


def one_set(draw: Draw) -> Arguments:
    """The rows of both sides, so that some are duplicates or near each other."""
    return {"x": torch.cat(draw.sides())}


def pdist() -> Loss:
    """As its authors write it, by torch.pdist."""
    return lambda x: torch.pdist(x).square().mul(-2).exp().mean().log()


UNIFORMITY = Row(
    functional.uniformity_loss,
    nn.UniformityLoss,
    uniformity,
    one_set,
    (
        Variant("both sides", columns=2),
        Variant(
            inputs=lambda draw: {"x": draw.unit()},
            title="uniformity",
            peers={"torch-eager": pdist},
        ),
        Variant("temperature 1", {"temperature": 1.0}),
    ),
    products=2,
    scales=(1.0,),
)

# Maximum mean discrepancy


def mmd(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
    unbiased: bool = False,
) -> Tensor:
    """Mean Gaussians within both sets less twice that between them, from differences of rows."""

    def mean_kernel(a: Tensor, b: Tensor, is_diagonal_left_out: bool) -> Tensor:
        square, total = (a[:, None] - b).square().sum(2), a.new_zeros(())
        if is_diagonal_left_out:
            square = square[~identity(a)]
        for bandwidth in bandwidths:
            total = total + torch.exp(-square / (2 * bandwidth**2)).mean()
        return total / len(bandwidths)

    within = mean_kernel(x, x, unbiased) + mean_kernel(y, y, unbiased)
    return within - 2 * mean_kernel(x, y, False)


def two_sets(draw: Draw) -> Arguments:
    """The second set is smaller, and lies elsewhere."""
    x, y = draw.sides()
    smaller = y[: max(2, 3 * draw.rows // 4)]
    return {"x": x, "y": F.normalize(smaller + 1.5 / draw.width**0.5, dim=1)}


def mmd_by_products() -> Loss:
    """Distances from products, one bandwidth of 1."""

    def mean(a: Tensor, b: Tensor) -> Tensor:
        square = a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T
        return (-square / 2).exp().mean()

    return lambda x, y: mean(x, x) + mean(y, y) - 2 * mean(x, y)


def of_bandwidths(bandwidths: tuple[float, ...], unbiased: bool) -> Variant:
    """Options that change the formula."""
    numbers = " ".join(map(str, bandwidths))
    return Variant(
        f"bandwidths {numbers}{', unbiased' * unbiased}",
        {"bandwidths": bandwidths, "unbiased": unbiased},
        axes={"bandwidths": numbers, "unbiased": unbiased},
    )


SEVERAL = ((0.5,), (0.25, 0.5, 1.0, 3.0))

MMD = Row(
    functional.mmd_loss,
    nn.MmdLoss,
    mmd,
    two_sets,
    (
        *(of_bandwidths(*each) for each in product(SEVERAL, (False, True))),
        Variant(
            "one bandwidth",
            {"bandwidths": (1.0,)},
            pairs,
            axes={"bandwidths": "1.0", "unbiased": False},
            title="mmd",
            peers={"torch-eager": mmd_by_products},
        ),
    ),
    products=8,
    scales=(1.0,),
)

ROWS = (ALIGNMENT, UNIFORMITY, MMD)
