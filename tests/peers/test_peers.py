"""Objectives against the classes of other libraries, installed and run: `make test-peers`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from peer_cases import Loss, check, features, needs
from torch import Tensor

from mmcore import functional, nn
from mmcore.functional import l2_normalize

# open_clip


@needs("open_clip")
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_open_clip_clip_loss(scale: float) -> None:
    from providers.packages import open_clip_losses

    theirs = open_clip_losses().ClipLoss()
    logit_scale = torch.tensor(scale, requires_grad=True)

    def run(loss: Callable[..., Tensor]) -> Loss:
        return lambda x, y, s: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), s)

    check(run(nn.ClipLoss()), run(theirs), [*features(), logit_scale])
    found = theirs(*features(), logit_scale, output_dict=True)
    assert nn.ClipLoss()(*features(), logit_scale, output_dict=True).keys() == found.keys()


@needs("open_clip")
@pytest.mark.parametrize("scale", [1.0, 10.0, 100.0])
def test_open_clip_siglip_loss(scale: float) -> None:
    from providers.packages import open_clip_losses

    theirs = open_clip_losses().SigLipLoss()
    scalars = [torch.tensor(scale, requires_grad=True), torch.tensor(-10.0, requires_grad=True)]

    def run(loss: Callable[..., Tensor]) -> Loss:
        return lambda x, y, s, b: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), s, b)

    check(run(nn.SigLipLoss()), run(theirs), [*features(), *scalars])


@needs("open_clip")
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_open_clip_distill_clip_loss(scale: float) -> None:
    from providers.packages import open_clip_losses

    theirs = open_clip_losses().DistillClipLoss()
    teacher = [*(F.normalize(torch.randn(48, 16), dim=1) for _ in range(2)), torch.tensor(30.0)]
    logit_scale = torch.tensor(scale, requires_grad=True)

    def run(loss: Callable[..., tuple[Tensor, Tensor]], which: int) -> Loss:
        return lambda x, y, s: loss(F.normalize(x, dim=1), F.normalize(y, dim=1), s, *teacher)[
            which
        ]

    for which in (0, 1):
        ours = run(nn.DistillClipLoss(), which)
        check(ours, run(theirs, which), [*features(), logit_scale])
    found, expected = (
        loss(*features(), logit_scale, *teacher, output_dict=True)
        for loss in (nn.DistillClipLoss(), theirs)
    )
    assert found.keys() == expected.keys()


# lightly: its losses normalise inside


def normalised(loss: Loss, *settings: float, **options: float) -> Loss:
    return lambda *z: loss(*(l2_normalize(each) for each in z), *settings, **options)


@needs("lightly")
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_lightly_nt_xent(temperature: float) -> None:
    from providers.packages import lightly_losses

    theirs = lightly_losses().NTXentLoss(temperature=temperature)
    check(normalised(functional.nt_xent_loss, 1 / temperature), theirs, features())


@needs("lightly")
@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.filterwarnings("ignore:To copy construct")
def test_lightly_dcl_and_dclw(temperature: float) -> None:
    from providers.packages import lightly_losses

    lightly_losses()  # enters the package without what it imports
    from lightly.loss.dcl_loss import DCLLoss, DCLWLoss

    ours = functional.dcl_loss
    check(normalised(ours, 1 / temperature), DCLLoss(temperature=temperature), features())
    weighted = DCLWLoss(temperature=temperature, sigma=0.5)
    check(normalised(ours, 1 / temperature, sigma=0.5), weighted, features())


# pytorch-metric-learning: normalises inside as well


@needs("pytorch_metric_learning")
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_metric_learning_sup_con(temperature: float) -> None:
    from pytorch_metric_learning.losses import SupConLoss

    label = torch.arange(48) // 4
    theirs = SupConLoss(temperature=temperature)
    check(
        lambda x: functional.sup_con_loss(l2_normalize(x), label, 1 / temperature),
        lambda x: theirs(x, label),
        features()[:1],
    )


@needs("pytorch_metric_learning")
@pytest.mark.parametrize("temperature", [0.1, 0.5])
def test_metric_learning_nt_xent(temperature: float) -> None:
    from pytorch_metric_learning.losses import NTXentLoss

    label = torch.arange(48).repeat(2)
    theirs = NTXentLoss(temperature=temperature)
    check(
        normalised(functional.nt_xent_loss, 1 / temperature),
        lambda x, y: theirs(torch.cat([x, y]), label),
        features(),
    )
