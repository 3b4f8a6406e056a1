"""Objectives between two sides as modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.functional.temperature import scale_not_temperature
from mmcore.nn.objective import Objective, WithOptions


class _LossOfPairs(WithOptions):
    """The call that open_clip's losses share."""

    @scale_not_temperature
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
        **by_name: Any,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch.

        Args:
            image_features: (N, D), rows of unit length.
            text_features: (N, D), rows of unit length, in the same order.
            logit_scale: the inverse temperature, already exponentiated; 0-D or one element.
            logit_bias: added to every logit; 0-D or one element. CLIP's loss does not depend on it.
            output_dict: whether to return ``{"contrastive_loss": loss}``.
            by_name: other tensors that the function takes, such as `group`.

        Returns:
            The loss, 0-D; float32 also for 16-bit features.
        """
        loss: Tensor = self.objective(
            image_features, text_features, logit_scale, logit_bias, **by_name, **self.options
        )
        return {"contrastive_loss": loss} if output_dict else loss


class ClipLoss(_LossOfPairs):
    """Symmetric contrastive loss of CLIP, called as open_clip 3.3's ``ClipLoss`` is.

    Replaces ``open_clip.loss.ClipLoss()`` on a single process: the same arguments, the same value
    and gradients, without the (N, N) logits. Label smoothing and one direction alone are options;
    `weight` and `group` are given in the call. See `mmcore.functional.clip_loss`.

    Example:
        >>> import torch, mmcore
        >>> loss = mmcore.nn.ClipLoss()
        >>> image = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> text = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss(image, text, torch.tensor(100.0), output_dict=True).keys()
        dict_keys(['contrastive_loss'])
    """

    objective = staticmethod(functional.clip_loss)

    def __init__(
        self,
        *,
        label_smoothing: float = 0.0,
        direction: str = "both",
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            label_smoothing=label_smoothing,
            direction=direction,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class SigLipLoss(_LossOfPairs):
    """Sigmoid loss of SigLIP, called as open_clip 3.3's ``SigLipLoss`` is.

    Replaces ``open_clip.loss.SigLipLoss()`` on a single process: the same arguments, the same value
    and gradients, without the (N, N) logits. Other positives than the diagonal are given in the
    call, by name. See `mmcore.functional.siglip_loss`.

    Example:
        >>> import torch, mmcore
        >>> loss = mmcore.nn.SigLipLoss()
        >>> image = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> text = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss(image, text, torch.tensor(10.0), torch.tensor(-10.0)).shape
        torch.Size([])
    """

    objective = staticmethod(functional.siglip_loss)

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


class InfoNceLoss(Objective):
    """Every query against all keys, of which one is its positive.

    `mmcore.functional.info_nce_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> query, key = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> loss = mmcore.nn.InfoNceLoss(margin=0.1)
        >>> loss(query, key, 14.0, target=torch.tensor([3, 2, 1, -1])).shape
        torch.Size([])
    """

    objective = staticmethod(functional.info_nce_loss)

    def __init__(
        self,
        *,
        margin: float = 0.0,
        negatives: str = "all",
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            margin=margin,
            negatives=negatives,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class HardNegativeLoss(Objective):
    """CLIP whose hard negatives count more.

    `mmcore.functional.hard_negative_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.nn.HardNegativeLoss(hardness=0.5)(x, y, 14.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.hard_negative_loss)

    def __init__(
        self,
        *,
        hardness: float = 1.0,
        positive_prior: float = 0.0,
        positive_weight: float = 1.0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            hardness=hardness,
            positive_prior=positive_prior,
            positive_weight=positive_weight,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class VseLoss(Objective):
    """VSE++: the hinge of the hardest negative alone.

    `mmcore.functional.vse_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.nn.VseLoss(margin=0.1)(x, y).shape
        torch.Size([])
    """

    objective = staticmethod(functional.vse_loss)

    def __init__(
        self,
        *,
        margin: float = 0.2,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            margin=margin,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class MultipleNegativesRankingLoss(Objective):
    """Queries and documents, whose negatives may lie in four directions.

    `mmcore.functional.multiple_negatives_ranking_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> query, document = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> loss = mmcore.nn.MultipleNegativesRankingLoss(directions=("query_to_doc", "doc_to_doc"))
        >>> loss(query, [document], 20.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.multiple_negatives_ranking_loss)

    def __init__(
        self,
        *,
        directions: Sequence[str] = ("query_to_doc",),
        partition: str = "joint",
        hardness: str | None = None,
        hardness_strength: float = 0.0,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            directions=directions,
            partition=partition,
            hardness=hardness,
            hardness_strength=hardness_strength,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )


class MatryoshkaLoss(Objective):
    """The loss of CLIP, or another, of several prefixes of the features.

    `mmcore.functional.matryoshka_loss` with its options fixed.

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(4, 16), torch.randn(4, 16)
        >>> mmcore.nn.MatryoshkaLoss(dims=(4, 8, 16))(x, y, 20.0).shape
        torch.Size([])
    """

    objective = staticmethod(functional.matryoshka_loss)

    def __init__(
        self,
        *,
        dims: Sequence[int],
        weights: Sequence[float] | None = None,
        objective: Callable[..., Tensor] | None = None,
        process_group: ProcessGroup = None,
        gradients: str = "mean",
        exchange: str = "auto",
        backend: str | None = None,
    ) -> None:
        super().__init__(
            dims=dims,
            weights=weights,
            objective=objective,
            process_group=process_group,
            gradients=gradients,
            exchange=exchange,
            backend=backend,
        )
