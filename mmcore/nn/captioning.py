"""Cross-entropy over a vocabulary, and CoCa, as modules."""

from __future__ import annotations

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.nn.objective import Objective


class LinearCrossEntropyLoss(Objective):
    """Cross-entropy of a linear layer's outputs; the layer stays yours.

    `mmcore.functional.linear_cross_entropy_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> layer = torch.nn.Linear(8, 100)
        >>> x, target = torch.randn(2, 5, 8), torch.randint(100, (2, 5))
        >>> loss = mmcore.nn.LinearCrossEntropyLoss(ignore_index=0)
        >>> loss(x, layer.weight, target, layer.bias).shape
        torch.Size([])
    """

    objective = staticmethod(functional.linear_cross_entropy_loss)

    def __init__(
        self,
        *,
        ignore_index: int = -100,
        label_smoothing: float = 0.0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            ignore_index=ignore_index,
            label_smoothing=label_smoothing,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class CoCaLoss(Objective):
    """CLIP of images and texts, and the captions' words.

    `mmcore.functional.coca_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> hidden, vocabulary = torch.randn(4, 7, 16), torch.randn(100, 16)
        >>> words = torch.randint(100, (4, 7))
        >>> loss = mmcore.nn.CoCaLoss(caption_weight=1.0)
        >>> loss(x, y, 14.0, hidden, vocabulary, words).shape
        torch.Size([])
    """

    objective = staticmethod(functional.coca_loss)

    def __init__(
        self,
        *,
        contrastive_weight: float = 1.0,
        caption_weight: float = 2.0,
        pad_id: int = 0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            contrastive_weight=contrastive_weight,
            caption_weight=caption_weight,
            pad_id=pad_id,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )
