"""A queue alone as negatives beside lightly's loss with a memory bank, which is such a queue."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peer_cases import check, features, needs
from torch import Tensor

from mmcore.bench.catalogue.packages import lightly_losses
from mmcore.functional import info_nce_loss


@needs("lightly")
@pytest.mark.parametrize("scale", [2.0, 14.3])
def test_memory_bank(scale: float) -> None:
    """Catches keys of the batch among the negatives, or another positive."""
    queue = F.normalize(torch.randn(100, 32), dim=1)

    def theirs(x: Tensor, y: Tensor) -> Tensor:
        losses = lightly_losses("ntx_ent_loss")
        loss = losses.NTXentLoss(temperature=1 / scale, memory_bank_size=(100, 32))
        loss.memory_bank.bank = queue.to(x)
        found: Tensor = loss(x, y)
        return found

    def ours(x: Tensor, y: Tensor) -> Tensor:
        x, y, keys = F.normalize(x, dim=1), F.normalize(y, dim=1), queue.to(x)
        return info_nce_loss(x, y, scale, queue=keys, negatives="queue")

    check(ours, theirs, features())
