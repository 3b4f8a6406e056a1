"""CoCa beside open_clip, whose class takes logits and returns two terms."""

from __future__ import annotations

import pytest
import torch
from peer_cases import check, features, needs
from torch import Tensor

from mmcore.functional import coca_loss, l2_normalize


@needs("open_clip")
@pytest.mark.parametrize("scale", [1.0, 14.3, 100.0])
def test_open_clip_coca_loss(scale: float) -> None:
    from providers.packages import open_clip_losses

    theirs = open_clip_losses().CoCaLoss(caption_loss_weight=2.0, clip_loss_weight=1.0)
    words = torch.randint(100, (48, 9)) * (torch.rand(48, 9) > 0.3)  # 0 is the padding

    def ours(x: Tensor, y: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return coca_loss(l2_normalize(x), l2_normalize(y), scale, hidden, weight, words)

    def both(x: Tensor, y: Tensor, hidden: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        terms = theirs(l2_normalize(x), l2_normalize(y), hidden @ weight.T, words, scale)
        return terms[0] + terms[1]

    layer = [torch.randn(48, 9, 16, requires_grad=True), torch.randn(100, 16, requires_grad=True)]
    check(ours, both, [*features(), *layer, torch.tensor(scale, requires_grad=True)])
