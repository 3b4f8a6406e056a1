"""Objectives: compositions over the statistics of the similarity matrix."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional.similarity import softmax_similarity


def clip_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Symmetric contrastive loss of CLIP: row i of `x` and row i of `y` belong together.

    Equivalent, without ever storing the (N, N) logits, to ::

        logits = scale * x @ y.T + bias
        target = torch.arange(N)
        (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    Args:
        x: (N, D), any floating-point dtype; rows of unit length, as `l2_normalize` or `project`
            leave them.
        y: (N, D), in the dtype of `x`.
        scale: a number or a one-element tensor: the inverse temperature, not its logarithm.
        bias: a number, a one-element tensor or None. It cancels: the loss does not depend on it.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs), for 16-bit inputs too.

    Raises:
        TypeError, ValueError: as `softmax_similarity`, or `x` and `y` differ in their rows.

    Memory:
        As `softmax_similarity`: O(N), against several copies of N² in plain PyTorch.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        https://arxiv.org/abs/2103.00020

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8)).requires_grad_()
        >>> y = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss = mmcore.functional.clip_loss(x, y, scale=100.0)
        >>> loss.backward()
        >>> x.grad.shape
        torch.Size([4, 8])
    """
    if isinstance(x, Tensor) and isinstance(y, Tensor) and x.shape[:1] != y.shape[:1]:
        raise ValueError(f"y must have {x.shape[0]} rows to match x, got {y.shape[0]}")
    row_lse, col_lse, row_pos, col_pos = softmax_similarity(x, y, scale, bias, backend=backend)
    loss = ((row_lse - row_pos).mean() + (col_lse - col_pos).mean()) / 2
    return loss if x.dtype == torch.float64 else loss.float()
