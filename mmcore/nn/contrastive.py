"""Objectives as modules."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from mmcore import functional


class _LossOfPairs(nn.Module):
    """The call that open_clip's losses share."""

    objective: Callable[..., Tensor]

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        logit_bias: float | Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """The loss of one batch.

        Args:
            image_features: (N, D), rows of unit length.
            text_features: (N, D), rows of unit length, in the same order.
            logit_scale: the inverse temperature, already exponentiated; 0-D or one element.
            logit_bias: added to every logit; 0-D or one element. CLIP's loss does not depend on it.
            output_dict: whether to return ``{"contrastive_loss": loss}``.

        Returns:
            The loss, 0-D; float32 also for 16-bit features.
        """
        loss = self.objective(image_features, text_features, logit_scale, logit_bias)
        return {"contrastive_loss": loss} if output_dict else loss


class ClipLoss(_LossOfPairs):
    """Symmetric contrastive loss of CLIP, called as open_clip 3.3's ``ClipLoss`` is.

    Replaces ``open_clip.loss.ClipLoss()`` on a single process: the same arguments, the same value
    and gradients, without the (N, N) logits. It has no parameters and no buffers, so checkpoints
    do not notice it. See `mmcore.functional.clip_loss` for the mathematics and the memory.

    Example:
        >>> import torch, mmcore
        >>> loss = mmcore.nn.ClipLoss()
        >>> image = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> text = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss(image, text, torch.tensor(100.0), output_dict=True).keys()
        dict_keys(['contrastive_loss'])
    """

    objective = staticmethod(functional.clip_loss)


class SigLipLoss(_LossOfPairs):
    """Sigmoid loss of SigLIP, called as open_clip 3.3's ``SigLipLoss`` is.

    Replaces ``open_clip.loss.SigLipLoss()`` on a single process: the same arguments, the same value
    and gradients, without the (N, N) logits. It has no parameters and no buffers, so checkpoints
    do not notice it. See `mmcore.functional.siglip_loss` for the mathematics and the memory.

    Example:
        >>> import torch, mmcore
        >>> loss = mmcore.nn.SigLipLoss()
        >>> image = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> text = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss(image, text, torch.tensor(10.0), torch.tensor(-10.0)).shape
        torch.Size([])
    """

    objective = staticmethod(functional.siglip_loss)
