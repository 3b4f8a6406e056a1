"""Objectives over D×D matrices against plain formulas, written from their papers."""

from __future__ import annotations

import pytest
import torch
from gram_cases import BATCH, every_batch, features, several
from objective_cases import WIDTH, check, every_kind, near, unit_rows
from torch import Tensor

from mmcore import functional, metrics

pytestmark = [pytest.mark.objective, pytest.mark.usefixtures("several_slabs")]

# Redundancy


def standardised(z: Tensor) -> Tensor:
    centred = z - z.mean(0)
    return centred / (centred.square().mean(0) + 1e-5).sqrt()


def without_diagonal(matrix: Tensor) -> Tensor:
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


@every_batch
def test_barlow_twins(kind: str) -> None:
    def plain(first: Tensor, second: Tensor) -> Tensor:
        correlation = standardised(first).T @ standardised(second) / len(first)
        on = (1 - correlation.diagonal()).square().sum()
        return on + 0.02 * without_diagonal(correlation).square().sum()

    check(
        lambda a, b: functional.barlow_twins_loss(a, b, off_diagonal_weight=0.02),
        plain,
        several(kind),
    )


@every_batch
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 0.0, 0.0), (0.0, 1.0, 3.0)])
def test_vicreg(kind: str, weights: tuple[float, float, float]) -> None:
    def plain(first: Tensor, second: Tensor) -> Tensor:
        total = weights[0] * (first - second).square().mean()
        for z in (first, second):
            centred = z - z.mean(0)
            covariance = centred.T @ centred / (len(z) - 1)
            std = (centred.square().sum(0) / (len(z) - 1) + 1e-4).sqrt()
            total = total + weights[1] * (1 - std).clamp(min=0).mean() / 2
            total = total + weights[2] * without_diagonal(covariance).square().sum() / WIDTH
        return total

    def ours(first: Tensor, second: Tensor) -> Tensor:
        invariance, variance, covariance = weights
        return functional.vicreg_loss(
            first, second, invariance_weight=invariance, variance_weight=variance,
            covariance_weight=covariance,
        )  # fmt: skip

    check(ours, plain, several(kind))


@every_batch
@pytest.mark.parametrize("weight", [0.0, 0.1])
def test_soft_cca(kind: str, weight: float) -> None:
    def plain(x: Tensor, y: Tensor) -> Tensor:
        x, y = standardised(x), standardised(y)
        total = (x - y).square().sum(1).mean() / 2
        for z in (x, y):
            total = total + weight * without_diagonal(z.T @ z / (len(z) - 1)).abs().sum()
        return total

    check(
        lambda x, y: functional.soft_cca_loss(x, y, decorrelation_weight=weight),
        plain,
        several(kind),
    )


# Correlation


@every_batch
@pytest.mark.parametrize("components", [None, 3])
def test_cca(kind: str, components: int | None) -> None:
    def inverse_root(covariance: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(covariance + 1e-2 * torch.eye(WIDTH).to(covariance))
        return vectors @ torch.diag(values.rsqrt()) @ vectors.T

    def plain(x: Tensor, y: Tensor) -> Tensor:
        x, y = ((z - z.mean(0)) / (len(z) - 1) ** 0.5 for z in (x, y))
        whitened = inverse_root(x.T @ x) @ (x.T @ y) @ inverse_root(y.T @ y)
        return -torch.linalg.svdvals(whitened)[:components].sum()

    check(
        lambda x, y: functional.cca_loss(x, y, components=components, regularization=1e-2),
        plain,
        several(kind),
    )


def test_cca_of_a_linear_map_finds_every_correlation() -> None:
    x = torch.randn(BATCH, 6, dtype=torch.float64)
    y = x @ torch.randn(6, 9, dtype=torch.float64) + 3
    loss = functional.cca_loss(x, y, regularization=1e-12)
    assert loss.item() == pytest.approx(-6)


def test_cca_refuses_what_has_no_root() -> None:
    x, y = features("random")
    few = 1e4 * x[:5]
    for bad, regularization in ((x.clone().fill_(torch.nan), 1.0), (few, 1e-12)):
        with pytest.raises(torch.linalg.LinAlgError):
            functional.cca_loss(bad, y[: len(bad)], regularization=regularization)


@every_batch
def test_coral(kind: str) -> None:
    def plain(x: Tensor, y: Tensor) -> Tensor:
        covariances = []
        for z in (x, y[:100]):
            centred = z - z.mean(0)
            covariances.append(centred.T @ centred / (len(z) - 1))
        return (covariances[0] - covariances[1]).square().sum() / (4 * WIDTH**2)

    check(lambda x, y: functional.coral_loss(x, y[:100]), plain, several(kind))


@every_batch
def test_cka(kind: str) -> None:
    def plain(x: Tensor, y: Tensor) -> Tensor:
        x, y = x - x.mean(0), y - y.mean(0)
        norms = [(side.T @ side).norm() for side in (x, y)]
        return 1 - (y.T @ x).square().sum() / (norms[0] * norms[1])

    check(functional.cka_loss, plain, several(kind))


def test_cka_is_that_of_the_metrics() -> None:
    x, y = features("random")
    expected = 1 - metrics.linear_cka(x, y[:, :5])
    torch.testing.assert_close(functional.cka_loss(x, y[:, :5]), expected.float())


def test_cka_of_equal_rows_has_no_gradient() -> None:
    x, y = features("random")
    same = x[:1].expand(BATCH, -1).clone().requires_grad_()
    loss = functional.cka_loss(same, y.requires_grad_())
    assert loss == 1
    for gradient in torch.autograd.grad(loss, [same, y]):
        assert torch.equal(gradient, torch.zeros_like(gradient))


# Consistency


@every_kind
@pytest.mark.parametrize("weights", [(0.25, 0.25), (1.0, 0.0), (0.0, 1.0)])
def test_cyclip(kind: str, weights: tuple[float, float]) -> None:
    def plain(x: Tensor, y: Tensor) -> Tensor:
        cross = (x @ y.T - y @ x.T).square().sum() / len(x)
        within = (x @ x.T - y @ y.T).square().sum() / len(x)
        return weights[0] * cross + weights[1] * within

    def ours(x: Tensor, y: Tensor) -> Tensor:
        cross, within = weights
        return functional.cyclip_loss(x, y, cross_modal_weight=cross, in_modal_weight=within)

    inputs = []
    for _ in range(6):
        x = unit_rows(BATCH)
        if kind == "duplicates":
            x[BATCH // 2 :] = x[: BATCH // 2].clone()
        inputs.append([x, near(x, 1e-3 if kind == "near" else 2.0)])
    check(ours, plain, inputs)


def test_cyclip_does_not_see_a_rotation_within() -> None:
    x = unit_rows(BATCH)
    rotation = torch.linalg.qr(torch.randn(WIDTH, WIDTH)).Q
    within = functional.cyclip_loss(x, x @ rotation, cross_modal_weight=0.0)
    total = functional.cyclip_loss(x, x @ rotation)
    assert abs(within.item()) < 1e-6 * total.item()
