"""Objectives of more than two modalities as modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.nn.objective import Objective


class MultimodalLoss(Objective):
    """An objective over pairs of several modalities.

    `mmcore.functional.multimodal_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> features = {m: mmcore.functional.l2_normalize(torch.randn(4, 8)) for m in "abc"}
        >>> mmcore.nn.MultimodalLoss(pairs="a")(features, 14.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.multimodal_loss)

    def __init__(
        self,
        *,
        pairs: str | Sequence[tuple[str, str]] = "all",
        weights: Mapping[tuple[str, str], float] | None = None,
        objective: str | Callable[..., Tensor] = "clip",
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            pairs=pairs,
            weights=weights,
            objective=objective,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class SymileLoss(Objective):
    """Each modality against the product of all others.

    `mmcore.functional.symile_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> features = {m: mmcore.functional.l2_normalize(torch.randn(4, 8)) for m in "abc"}
        >>> mmcore.nn.SymileLoss()(features, 14.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.symile_loss)

    def __init__(
        self,
        *,
        negatives: str = "tuples",
        generator: torch.Generator | None = None,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            negatives=negatives,
            generator=generator,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class GramLoss(Objective):
    """Rows that belong together span a small volume.

    `mmcore.functional.gram_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> features = {m: mmcore.functional.l2_normalize(torch.randn(4, 8)) for m in "abc"}
        >>> mmcore.nn.GramLoss(anchor="a", label_smoothing=0.1)(features, 14.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.gram_loss)

    def __init__(
        self,
        *,
        anchor: str,
        label_smoothing: float = 0.0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            anchor=anchor,
            label_smoothing=label_smoothing,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )
