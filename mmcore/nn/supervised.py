"""Objectives with several positives as modules."""

from __future__ import annotations

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.nn.objective import Objective


class SupConLoss(Objective):
    """Rows of a class are positives of each other.

    `mmcore.functional.sup_con_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(6, 8))
        >>> mmcore.nn.SupConLoss()(x, torch.tensor([0, 0, 1, 1, 2, 2]), 10.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.sup_con_loss)

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


class UniClLoss(Objective):
    """CLIP with classes.

    `mmcore.functional.unicl_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> label = torch.tensor([0, 0, 1, 2])
        >>> mmcore.nn.UniClLoss()(x, y, label, label, 14.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.unicl_loss)

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


class MilNceLoss(Objective):
    """Of several candidates at least one belongs to the row.

    `mmcore.functional.mil_nce_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> clips, captions = (mmcore.functional.l2_normalize(torch.randn(n, 8)) for n in (3, 6))
        >>> near = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> mmcore.nn.MilNceLoss()(clips, captions, torch.arange(3), near, 14.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.mil_nce_loss)

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
