"""How embeddings lie, as modules."""

from __future__ import annotations

from collections.abc import Sequence

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.nn.objective import Objective


class AlignmentLoss(Objective):
    """Mean distance of pairs, to a power.

    `mmcore.functional.alignment_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.nn.AlignmentLoss(power=1.0)(x, y).shape
        torch.Size([])
    """

    objective = staticmethod(functional.alignment_loss)

    def __init__(
        self,
        *,
        power: float = 2.0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
    ) -> None:
        super().__init__(
            power=power,
            process_group=process_group,
            gradients=gradients,
        )


class UniformityLoss(Objective):
    """Low where rows are spread evenly.

    `mmcore.functional.uniformity_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(100, 8))
        >>> mmcore.nn.UniformityLoss(temperature=3.0)(x).item() < 0
        True
    """

    objective = staticmethod(functional.uniformity_loss)

    def __init__(
        self,
        *,
        temperature: float = 2.0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            temperature=temperature,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class MmdLoss(Objective):
    """How far apart two sets of rows are distributed.

    `mmcore.functional.mmd_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), torch.randn(60, 8) + 1
        >>> mmcore.nn.MmdLoss(bandwidths=(2.0, 4.0))(x, y).item() > 0
        True
    """

    objective = staticmethod(functional.mmd_loss)

    def __init__(
        self,
        *,
        bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
        unbiased: bool = False,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            bandwidths=bandwidths,
            unbiased=unbiased,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )
