"""Distillation as a module."""

from __future__ import annotations

from torch import Tensor

from mmcore import functional
from mmcore.functional.ranks import ProcessGroup
from mmcore.functional.temperature import scale_not_temperature
from mmcore.nn.objective import WithOptions


class DistillClipLoss(WithOptions):
    """CLIP's loss and a teacher's distilled, called as open_clip 3.3's ``DistillClipLoss`` is.

    Replaces ``open_clip.loss.DistillClipLoss()`` on a single process: the same arguments, the same
    values and gradients, without an (N, N) matrix of either model. It has no parameters and no
    buffers. See `mmcore.functional.distill_clip_loss` for the mathematics and the memory.

    Example:
        >>> import torch, mmcore
        >>> loss = mmcore.nn.DistillClipLoss()
        >>> image, text, teacher_image, teacher_text = (
        ...     mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(4)
        ... )
        >>> contrastive, distillation = loss(image, text, 20.0, teacher_image, teacher_text, 100.0)
        >>> contrastive.shape, distillation.shape
        (torch.Size([]), torch.Size([]))
    """

    objective = staticmethod(functional.distill_clip_loss)

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

    @scale_not_temperature
    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: float | Tensor,
        dist_image_features: Tensor,
        dist_text_features: Tensor,
        dist_logit_scale: float | Tensor,
        output_dict: bool = False,
    ) -> tuple[Tensor, Tensor] | dict[str, Tensor]:
        """Both losses of one batch.

        Args:
            image_features: (N, D), rows of unit length.
            text_features: (N, D), rows of unit length, in the same order.
            logit_scale: the inverse temperature, already exponentiated; 0-D or one element.
            dist_image_features: (N, E), the teacher's, detached.
            dist_text_features: (N, E), the teacher's, detached.
            dist_logit_scale: the teacher's inverse temperature, detached.
            output_dict: whether to return the losses as ``"contrastive_loss"`` and
                ``"distill_loss"``.
        """
        contrastive, distillation = self.objective(
            image_features, text_features, logit_scale, dist_image_features, dist_text_features,
            dist_logit_scale, **self.options,
        )  # fmt: skip
        if output_dict:
            return {"contrastive_loss": contrastive, "distill_loss": distillation}
        return contrastive, distillation
