"""Maps between spaces beside scikit-learn and SciPy: the same numbers to 1e-8."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peer_cases import needs

from mmcore.translation import fit_map

Array = NDArray[np.float64]


def sides(count: int = 300, x_width: int = 30, y_width: int = 20) -> tuple[Array, Array]:
    """Two sides that share something, with means and scales of their own."""
    shared = torch.randn(count, 10, dtype=torch.float64)
    x, y = (
        shared @ torch.randn(10, width, dtype=torch.float64)
        + torch.randn(count, width, dtype=torch.float64)
        for width in (x_width, y_width)
    )
    return (3 * x + 2).numpy(), (y - 5).numpy()


@needs("sklearn")
@pytest.mark.parametrize("centre", [True, False])
@pytest.mark.parametrize("ridge", [1e-6, 1e-2, 1.0])
def test_ridge(ridge: float, centre: bool) -> None:
    """Catches a penalty, or a mean, that is not scikit-learn's."""
    from sklearn.linear_model import Ridge

    x, y = sides()
    variance = np.square(x - x.mean(0) * centre).mean()
    theirs = Ridge(alpha=ridge * len(x) * variance, fit_intercept=centre, tol=1e-12).fit(x, y)
    found = fit_map(x, y, ridge=ridge, centre=centre)
    np.testing.assert_allclose(found.x_weight.numpy(), theirs.coef_.T, rtol=1e-8, atol=1e-8)
    np.testing.assert_allclose(found.apply(x), theirs.predict(x), rtol=1e-8, atol=1e-8)


@needs("sklearn")
def test_least_squares_of_fewer_rows_than_columns() -> None:
    """Catches predictions that are not those of the pseudo-inverse: the data are met exactly."""
    from sklearn.linear_model import LinearRegression

    x, y = sides(20)
    theirs = LinearRegression().fit(x, y)
    found = fit_map(x, y, ridge=0).apply(x)
    np.testing.assert_allclose(found, theirs.predict(x), rtol=1e-8, atol=1e-8)


@needs("scipy")
def test_procrustes() -> None:
    """Catches a rotation that is not SciPy's."""
    from scipy.linalg import orthogonal_procrustes

    x, y = sides(x_width=20)
    rotation, _ = orthogonal_procrustes(x - x.mean(0), y - y.mean(0))
    found = fit_map(x, y, "procrustes")
    np.testing.assert_allclose(found.x_weight.numpy(), rotation, rtol=1e-8, atol=1e-8)


@needs("sklearn")
def test_cca() -> None:
    """Catches correlations and variates that are not scikit-learn's, which iterates for each."""
    from sklearn.cross_decomposition import CCA

    x, y = sides()
    count = 6
    theirs = CCA(count, max_iter=100_000, tol=1e-20).fit(x, y)
    a, b = theirs.transform(x, y)
    found = fit_map(x, y, "cca", ridge=0, components=count)
    correlations = [np.corrcoef(a[:, k], b[:, k])[0, 1] for k in range(count)]
    assert found.correlations is not None
    np.testing.assert_allclose(found.correlations.numpy(), correlations, rtol=1e-8)
    for ours, scores in ((found.apply(x), a), (found.apply(y, side="y"), b)):
        matched = [abs(np.corrcoef(ours[:, k], scores[:, k])[0, 1]) for k in range(count)]
        np.testing.assert_allclose(matched, 1, rtol=1e-8)
