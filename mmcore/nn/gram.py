"""Objectives over D×D matrices as modules."""

from __future__ import annotations

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
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

    def __init__(
        self,
        *,
        off_diagonal_weight: float = 5e-3,
        eps: float = 1e-5,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            off_diagonal_weight=off_diagonal_weight,
            eps=eps,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


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

    def __init__(
        self,
        *,
        invariance_weight: float = 25.0,
        variance_weight: float = 25.0,
        covariance_weight: float = 1.0,
        eps: float = 1e-4,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            invariance_weight=invariance_weight,
            variance_weight=variance_weight,
            covariance_weight=covariance_weight,
            eps=eps,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


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

    def __init__(
        self,
        *,
        decorrelation_weight: float,
        eps: float = 1e-5,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            decorrelation_weight=decorrelation_weight,
            eps=eps,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


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

    def __init__(
        self,
        *,
        components: int | None = None,
        regularization: float = 1e-4,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            components=components,
            regularization=regularization,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


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

    def __init__(
        self,
        *,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


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

    def __init__(
        self,
        *,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


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

    def __init__(
        self,
        *,
        cross_modal_weight: float = 0.25,
        in_modal_weight: float = 0.25,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            cross_modal_weight=cross_modal_weight,
            in_modal_weight=in_modal_weight,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )
