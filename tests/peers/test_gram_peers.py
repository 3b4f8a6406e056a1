"""Objectives over D×D matrices against the classes of other libraries: `make test-peers`."""

from __future__ import annotations

import pytest
from peer_cases import check, features, needs

from mmcore import functional


@needs("lightly")
@pytest.mark.parametrize("off_diagonal_weight", [5e-3, 0.5])
def test_lightly_barlow_twins(off_diagonal_weight: float) -> None:
    from providers.packages import lightly_losses

    lightly_losses()  # enters the package without what it imports
    from lightly.loss.barlow_twins_loss import BarlowTwinsLoss

    check(
        lambda *z: functional.barlow_twins_loss(*z, off_diagonal_weight=off_diagonal_weight),
        BarlowTwinsLoss(lambda_param=off_diagonal_weight),
        features(),
    )


@needs("lightly")
@pytest.mark.parametrize("weights", [(25.0, 25.0, 1.0), (1.0, 2.0, 3.0)])
def test_lightly_vicreg(weights: tuple[float, float, float]) -> None:
    from providers.packages import lightly_losses

    lightly_losses()
    from lightly.loss.vicreg_loss import VICRegLoss

    invariance, variance, covariance = weights
    theirs = VICRegLoss(lambda_param=invariance, mu_param=variance, nu_param=covariance)
    inputs = [(0.8 * z).detach().requires_grad_() for z in features()]
    assert (inputs[0].std(0) < 1).any()
    check(
        lambda *z: functional.vicreg_loss(
            *z, invariance_weight=invariance, variance_weight=variance, covariance_weight=covariance
        ),
        theirs,
        inputs,
    )
