"""Objectives over D×D matrices as modules."""

from __future__ import annotations

from mmcore import functional
from mmcore.nn.objective import Objective


class BarlowTwinsLoss(Objective):
    """Every feature like itself in the other view, and unlike all others.

    `mmcore.functional.barlow_twins_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> first, second = torch.randn(100, 8), torch.randn(100, 8)
        >>> mmcore.nn.BarlowTwinsLoss(off_diagonal_weight=0.01)(first, second).shape
        torch.Size([])
    """

    objective = staticmethod(functional.barlow_twins_loss)


class VicRegLoss(Objective):
    """Views alike, features spread and unlike each other.

    `mmcore.functional.vicreg_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> first, second = torch.randn(100, 8), torch.randn(100, 8)
        >>> mmcore.nn.VicRegLoss(covariance_weight=0.5)(first, second).shape
        torch.Size([])
    """

    objective = staticmethod(functional.vicreg_loss)


class SoftCcaLoss(Objective):
    """Standardised pairs alike, features of a side uncorrelated.

    `mmcore.functional.soft_cca_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), torch.randn(100, 8)
        >>> mmcore.nn.SoftCcaLoss(decorrelation_weight=0.1)(x, y).shape
        torch.Size([])
    """

    objective = staticmethod(functional.soft_cca_loss)


class CcaLoss(Objective):
    """Minus the sum of the largest canonical correlations.

    `mmcore.functional.cca_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), torch.randn(100, 6)
        >>> mmcore.nn.CcaLoss(components=4)(x, y).item() < 0
        True
    """

    objective = staticmethod(functional.cca_loss)


class CoralLoss(Objective):
    """Squared distance of two covariances.

    `mmcore.functional.coral_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), torch.randn(60, 8)
        >>> mmcore.nn.CoralLoss()(x, y).shape
        torch.Size([])
    """

    objective = staticmethod(functional.coral_loss)


class CkaLoss(Objective):
    """Whether two sides place the same things alike.

    `mmcore.functional.cka_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), torch.randn(100, 6)
        >>> mmcore.nn.CkaLoss()(x, y).shape
        torch.Size([])
    """

    objective = staticmethod(functional.cka_loss)


class CyClipLoss(Objective):
    """CyCLIP's two regularisers, to be added to `ClipLoss`.

    `mmcore.functional.cyclip_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.nn.CyClipLoss(in_modal_weight=0.5)(x, y).shape
        torch.Size([])
    """

    objective = staticmethod(functional.cyclip_loss)
