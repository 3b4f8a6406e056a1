"""Objectives of two views as modules."""

from __future__ import annotations

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.nn.objective import Objective


class NtXentLoss(Objective):
    """Of all other views in the batch, which is of the same thing?

    `mmcore.functional.nt_xent_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> first, second = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.nn.NtXentLoss()(first, second, 10.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.nt_xent_loss)

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


class DclLoss(Objective):
    """NT-Xent whose denominators leave the positive out.

    `mmcore.functional.dcl_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> first, second = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.nn.DclLoss(sigma=0.5)(first, second, 10.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.dcl_loss)

    def __init__(
        self,
        *,
        sigma: float | None = None,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            sigma=sigma,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )
