"""Log-sum-exp of float32 logits, and its gradient, that keep float64's digits near convergence."""

from __future__ import annotations

import torch
from torch import Tensor


def log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    """float64; −inf where all logits are."""
    # Summed in float64, where 1 + tiny is not 1: lse − pos keeps its digits near convergence.
    maximum = logits.amax(dim, keepdim=True)
    maximum = maximum.masked_fill(maximum == -torch.inf, 0)
    total = (logits - maximum).exp_().sum(dim, dtype=torch.float64)
    return maximum.squeeze(dim).double() + total.log()


def weighted_softmax(logits: Tensor, lse: Tensor, weight: Tensor) -> Tensor:
    """weight·exp(logits − lse), 0 where lse is −inf; `lse` and `weight` are float64."""
    # lse in two parts of the logits' dtype. Where logits are large, the second is large too, and
    # the first may not be subtracted without it: neither exponential would be finite.
    rounded = lse.to(logits.dtype)
    rest = (rounded.double() - lse).to(logits.dtype)
    softmax = (logits - rounded).add_(rest).exp_()
    return softmax.mul_(weight.to(logits.dtype)).masked_fill_(lse == -torch.inf, 0)
