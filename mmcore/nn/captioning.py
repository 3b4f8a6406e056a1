"""Cross-entropy over a vocabulary, and CoCa, as modules."""

from __future__ import annotations

from mmcore import functional
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
