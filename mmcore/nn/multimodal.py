"""Objectives of more than two modalities as modules."""

from __future__ import annotations

from mmcore import functional
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
