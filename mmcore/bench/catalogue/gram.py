"""Over D×D matrices: redundancy, correlation, consistency."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.hard_negatives import pairs
from mmcore.bench.catalogue.packages import lightly_losses
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

# What all rows but CyCLIP's have in common.
OF_COLUMNS: dict[str, Any] = {
    "kernels": "none",
    "rows": 240,
    "kinds": ("random", "duplicates", "near", "constant", "far"),
    "scales": (1.0,),
}


def views(draw: Draw) -> Arguments:
    """Two views of each thing, of any length."""
    first, second = draw.columns()
    return {"first": first, "second": second}


def two_sides(draw: Draw) -> Arguments:
    """Two sides of any length."""
    x, y = draw.columns()
    return {"x": x, "y": y}


def standardised(z: Tensor, eps: float) -> Tensor:
    """Columns of mean 0 and variance 1."""
    centred = z - z.mean(0)
    return centred / (centred.square().mean(0) + eps).sqrt()


def covariance(z: Tensor) -> Tensor:
    """Of the columns, unbiased."""
    centred = z - z.mean(0)
    return centred.T @ centred / (len(z) - 1)


def off_diagonal(matrix: Tensor) -> Tensor:
    """All entries but those of the diagonal."""
    return matrix[~torch.eye(len(matrix), dtype=torch.bool, device=matrix.device)]


# Redundancy


def barlow_twins(
    first: Tensor, second: Tensor, *, off_diagonal_weight: float = 5e-3, eps: float = 1e-5
) -> Tensor:
    """The correlation of both views against the identity."""
    correlation = standardised(first, eps).T @ standardised(second, eps) / len(first)
    on = (1 - correlation.diagonal()).square().sum()
    return on + off_diagonal_weight * off_diagonal(correlation).square().sum()


def lightly_barlow_twins(weight: float) -> Loss:
    """BarlowTwinsLoss."""
    loss = lightly_losses("barlow_twins_loss").BarlowTwinsLoss(lambda_param=weight)
    return lambda first, second: loss(first, second)


def barlow_variant(weight: float, **more: Any) -> Variant:
    """With its peer."""
    return Variant(
        f"weight {weight}",
        {"off_diagonal_weight": weight},
        peers={"lightly": lambda: lightly_barlow_twins(weight)},
        **more,
    )


BARLOW_TWINS = Row(
    functional.barlow_twins_loss,
    nn.BarlowTwinsLoss,
    barlow_twins,
    views,
    (barlow_variant(5e-3, title="barlow_twins"), barlow_variant(0.02), barlow_variant(0.5)),
    gram_products=3,
    **OF_COLUMNS,
)


def vicreg(
    first: Tensor,
    second: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
) -> Tensor:
    """Distance of the views, a hinge on standard deviations, squares of covariances."""
    total = invariance_weight * (first - second).square().mean()
    for z in (first, second):
        matrix, centred = covariance(z), z - z.mean(0)
        std = (centred.square().sum(0) / (len(z) - 1) + eps).sqrt()
        total = total + variance_weight * (1 - std).clamp(min=0).mean() / 2
        total = total + covariance_weight * off_diagonal(matrix).square().sum() / z.shape[1]
    return total


def lightly_vicreg(weights: tuple[float, float, float]) -> Loss:
    """VICRegLoss."""
    names = ("lambda_param", "mu_param", "nu_param")
    loss = lightly_losses("vicreg_loss").VICRegLoss(**dict(zip(names, weights, strict=True)))
    return lambda first, second: loss(first, second)


def vicreg_variant(*weights: float, **more: Any) -> Variant:
    """With its peer."""
    names = ("invariance_weight", "variance_weight", "covariance_weight")
    invariance, variance, of_covariance = weights
    return Variant(
        f"weights {weights}",
        dict(zip(names, weights, strict=True)),
        peers={"lightly": lambda: lightly_vicreg((invariance, variance, of_covariance))},
        **more,
    )


VICREG = Row(
    functional.vicreg_loss,
    nn.VicRegLoss,
    vicreg,
    views,
    (
        vicreg_variant(25.0, 25.0, 1.0, title="vicreg"),
        vicreg_variant(1.0, 0.0, 0.0),
        vicreg_variant(0.0, 1.0, 3.0),
        vicreg_variant(1.0, 2.0, 3.0),
    ),
    gram_products=4,
    **OF_COLUMNS,
)


def soft_cca(x: Tensor, y: Tensor, *, decorrelation_weight: float, eps: float = 1e-5) -> Tensor:
    """Distance of standardised pairs, and absolute covariances of their columns."""
    x, y = standardised(x, eps), standardised(y, eps)
    total = (x - y).square().sum(1).mean() / 2
    for z in (x, y):
        total = total + decorrelation_weight * off_diagonal(z.T @ z / (len(z) - 1)).abs().sum()
    return total


SOFT_CCA = Row(
    functional.soft_cca_loss,
    nn.SoftCcaLoss,
    soft_cca,
    two_sides,
    tuple(Variant(f"weight {weight}", {"decorrelation_weight": weight}) for weight in (0.1, 0.0)),
    gram_products=4,
    **OF_COLUMNS,
)

# Correlation


def cca(
    x: Tensor, y: Tensor, *, components: int | None = None, regularization: float = 1e-4
) -> Tensor:
    """Less the sum of canonical correlations, whitened by symmetric roots."""

    def inverse_root(matrix: Tensor) -> Tensor:
        one = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        values, vectors = torch.linalg.eigh(matrix + regularization * one)
        root: Tensor = vectors @ torch.diag(values.rsqrt()) @ vectors.T
        return root

    x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
    whitened = inverse_root(x.T @ x) @ (x.T @ y) @ inverse_root(y.T @ y)
    correlations: Tensor = torch.linalg.svdvals(whitened)
    return -correlations[:components].sum()


CCA = Row(
    functional.cca_loss,
    nn.CcaLoss,
    cca,
    two_sides,
    tuple(
        Variant(f"components {count}", {"components": count, "regularization": 1e-2})
        for count in (None, 3)
    ),
    gram_products=7,
    **OF_COLUMNS,
)


def coral(x: Tensor, y: Tensor) -> Tensor:
    """Squared distance of both covariances."""
    return (covariance(x) - covariance(y)).square().sum() / (4 * x.shape[1] ** 2)


def two_domains(draw: Draw) -> Arguments:
    """The second has fewer rows."""
    x, y = draw.columns()
    return {"x": x, "y": y[: 5 * draw.rows // 12]}


CORAL = Row(
    functional.coral_loss,
    nn.CoralLoss,
    coral,
    two_domains,
    (Variant(),),
    gram_products=4,
    **OF_COLUMNS,
)


def cka(x: Tensor, y: Tensor) -> Tensor:
    """1 less the alignment of both linear kernels."""
    x, y = x - x.mean(0), y - y.mean(0)
    norms: list[Tensor] = [(side.T @ side).norm() for side in (x, y)]
    return 1 - (y.T @ x).square().sum() / (norms[0] * norms[1])


CKA = Row(
    functional.cka_loss,
    nn.CkaLoss,
    cka,
    two_sides,
    (Variant(),),
    gram_products=7,
    **OF_COLUMNS,
)

# Consistency


def cyclip(
    x: Tensor, y: Tensor, *, cross_modal_weight: float = 0.25, in_modal_weight: float = 0.25
) -> Tensor:
    """Cosines are to be symmetric between the sides and equal within them."""
    cosine = x @ y.T
    cross = (cosine - cosine.T).square().sum() / len(x)
    within = (x @ x.T - y @ y.T).square().sum() / len(x)
    return cross_modal_weight * cross + in_modal_weight * within


CYCLIP = Row(
    functional.cyclip_loss,
    nn.CyClipLoss,
    cyclip,
    pairs,
    (
        Variant(title="cyclip", peers={"torch-eager": lambda: cyclip}),
        Variant("between", {"cross_modal_weight": 1.0, "in_modal_weight": 0.0}),
        Variant("within", {"cross_modal_weight": 0.0, "in_modal_weight": 1.0}),
    ),
    gram_products=7,
    rows=240,
    scales=(1.0,),
    kernels="none",
)

ROWS = (BARLOW_TWINS, VICREG, SOFT_CCA, CCA, CORAL, CKA, CYCLIP)
