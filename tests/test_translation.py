"""Maps between spaces, against closed forms in float64 over all rows at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from translation_cases import KINDS, assert_close, sides

from mmcore.translation import LinearMap, fit_map, rows


@pytest.fixture(autouse=True)
def _several_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Some 30 rows at a time."""
    monkeypatch.setattr(rows, "PIECE_BYTES", 8 * 20 * 30)


def covariances(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    x, y = x - x.mean(0), y - y.mean(0)
    return x.T @ x / len(x), x.T @ y / len(x), y.T @ y / len(x)


def penalised(covariance: Tensor, ridge: float) -> Tensor:
    return covariance + ridge * covariance.diagonal().mean() * torch.eye(len(covariance)).double()


def inverse_root(matrix: Tensor) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values.rsqrt()) @ vectors.T


@pytest.mark.parametrize("ridge", [0.0, 1e-2, 10.0])
def test_ridge_is_its_normal_equations(ridge: float) -> None:
    """Catches a penalty of another size, a mean that is lost, a piece that is counted twice."""
    x, y = sides()
    across, own = covariances(x, y)[1], covariances(x, y)[0]
    found = fit_map(x, y, ridge=ridge)
    assert_close(found.x_weight, torch.linalg.solve(penalised(own, ridge), across))
    assert_close(found.apply(x), (x - x.mean(0)) @ found.x_weight + y.mean(0))


@pytest.mark.parametrize(("x_width", "y_width"), [(8, 8), (12, 8), (8, 12)])
def test_procrustes_is_the_polar_factor(x_width: int, y_width: int) -> None:
    """Catches a map that is not orthogonal, or the transpose of the right one."""
    x, y = sides(x_width=x_width, y_width=y_width)
    left, _, right = torch.linalg.svd(covariances(x, y)[1], full_matrices=False)
    found = fit_map(x, y, "procrustes")
    assert_close(found.x_weight, left @ right)
    tall = found.x_weight if x_width >= y_width else found.x_weight.T
    assert_close(tall.T @ tall, torch.eye(min(x_width, y_width), dtype=torch.float64))


def test_procrustes_finds_a_rotation_and_its_inverse() -> None:
    """Catches an inverse with the means of the wrong side."""
    x, _ = sides()
    rotation = torch.linalg.qr(torch.randn(12, 12, dtype=torch.float64)).Q
    y = (x - 7) @ rotation + torch.arange(12)
    found = fit_map(x, y, "procrustes")
    assert_close(found.apply(x), y)
    assert_close(found.inverse().apply(y), x)
    assert found.inverse().inverse().x_weight.equal(found.x_weight)


@pytest.mark.parametrize("ridge", [0.0, 1e-1])
def test_cca_is_the_svd_of_whitened_covariances(ridge: float) -> None:
    """Catches a penalty on one side alone, components out of order, and sides that are not
    turned alike.
    """
    x, y = sides()
    own, across, other = covariances(x, y)
    roots = [inverse_root(penalised(each, ridge)) for each in (own, other)]
    left, values, right = torch.linalg.svd(roots[0] @ across @ roots[1], full_matrices=False)
    found = fit_map(x, y, "cca", ridge=ridge)
    assert found.y_weight is not None
    assert found.correlations is not None
    assert_close(found.correlations, values)
    sign = ((roots[0] @ left) * found.x_weight).sum(0).sign()
    assert_close(found.x_weight, roots[0] @ left * sign)
    assert_close(found.y_weight, roots[1] @ right.T * sign)
    largest = found.x_weight.abs().argmax(0)
    assert (found.x_weight[largest, range(8)] > 0).all()


def test_variates_of_cca_are_uncorrelated_but_for_their_partner() -> None:
    """Catches coordinates whose correlations are not those that the map reports."""
    x, y = sides()
    found = fit_map(x, y, "cca", ridge=0)
    assert found.correlations is not None
    a, b = found.apply(x), found.apply(y, side="y")
    own, across, other = covariances(a, b)
    identity = torch.eye(8, dtype=torch.float64)
    assert_close(own, identity)
    assert_close(other, identity)
    assert_close(across, found.correlations.diag())
    assert_close(found.apply(y, side="y", power=2), b * found.correlations**2)
    few = fit_map(x, y, "cca", ridge=0, components=3)
    assert_close(few.apply(x), a[:, :3])


@pytest.mark.parametrize("kind", KINDS)
def test_without_centring(kind: str) -> None:
    """Catches means that are taken off although nobody wants it."""
    x, y = sides()
    found = fit_map(x, y, kind, centre=False)
    doubled = fit_map(torch.cat([x, -x]), torch.cat([y, -y]), kind)  # whose means are 0
    assert not found.x_mean.any()
    assert not found.y_mean.any()
    assert_close(found.x_weight, doubled.x_weight)


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_make_no_difference(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a cut between pieces that loses rows, and a mean of piece means."""
    x, y = sides()
    several = fit_map(x, y, kind)
    cuts = (40, 0, 1, 60)
    streamed = fit_map((part for part in x.split(cuts)), list(y.split(cuts)), kind)
    monkeypatch.setattr(rows, "PIECE_BYTES", 2**24)
    whole = fit_map(x, y, kind)
    for other in (several, streamed):
        assert_close(other.x_weight, whole.x_weight, 1e-11)
        assert_close(other.x_mean, whole.x_mean, 1e-12)


def test_a_mean_far_from_zero_costs_no_digits() -> None:
    """Catches E[xy] − E[x]·E[y], which loses all digits here."""
    x, y = sides()
    near, far = fit_map(x, y), fit_map(x + 1e7, y - 1e7)
    assert_close(far.x_weight, near.x_weight, 1e-6)


def test_fewer_rows_than_columns() -> None:
    """Catches a least squares solution that blows up, and components made of rounding."""
    x, y = sides(5, 30, 20)
    exact = fit_map(x, y, ridge=0)
    assert_close(exact.apply(x), y, 1e-9)
    assert exact.x_weight.abs().max() < 100
    found = fit_map(x, y, "cca")
    assert found.correlations is not None
    assert len(found.correlations) == 4
    with pytest.raises(ValueError, match="components must be from 1 to 4, as many as have a"):
        fit_map(x, y, "cca", components=5)


def test_collinear_and_constant_columns() -> None:
    """Catches weights of 1e8 of opposite signs, and a division by a variance of 0."""
    x, y = sides()
    worse = torch.cat([x, x[:, :3] - 2 * x[:, 3:6], torch.full((len(x), 2), 4.0)], 1)
    for kind in ("ridge", "cca"):
        plain, found = fit_map(x, y, kind, ridge=0), fit_map(worse, y, kind, ridge=0)
        assert found.x_weight.isfinite().all()
        assert_close(found.apply(worse), plain.apply(x) * sign_of(plain, found, x, worse), 1e-7)
        assert not found.x_weight[-2:].any()
    assert fit_map(worse, y).x_weight.isfinite().all()


def sign_of(plain: LinearMap, found: LinearMap, x: Tensor, worse: Tensor) -> Tensor:
    return (plain.apply(x) * found.apply(worse)).sum(0).sign()


def test_columns_of_other_units_are_not_lost() -> None:
    """Catches a column that counts as rounding because its unit is large."""
    x, y = sides()
    unit = torch.ones(12, dtype=torch.float64)
    unit[::2] = 1e-9
    for kind in ("ridge", "cca"):
        plain, scaled = fit_map(x, y, kind, ridge=0), fit_map(x * unit, y, kind, ridge=0)
        assert_close(scaled.apply(x * unit).abs(), plain.apply(x).abs(), 1e-7)


def test_what_does_not_vary() -> None:
    """Catches NaN where there is nothing to learn: ridge predicts the mean, others refuse."""
    _, y = sides()
    constant = torch.full((len(y), 4), 2.0).double()
    assert_close(fit_map(constant, y).apply(constant), y.mean(0).expand_as(y))
    for kind in ("procrustes", "cca"):
        with pytest.raises(ValueError, match="x and y must vary together"):
            fit_map(constant, y, kind)
    with pytest.raises(ValueError, match="must have at least 2 rows to be centred, got 1"):
        fit_map(y[:1], y[:1])
    assert_close(fit_map(y[:1], y[:1], centre=False, ridge=0).apply(y[:1]), y[:1])
    with pytest.raises(ValueError, match="must have at least 1 row, got 0"):
        fit_map(y[:0], y[:0], centre=False)
