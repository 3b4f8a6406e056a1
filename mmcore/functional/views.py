"""Objectives of two views of the same things: NT-Xent, DCL."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.reductions import as_loss
from mmcore.functional.similarity import softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops.define import without_autocast


@scale_not_temperature
def nt_xent_loss(
    first: Tensor, second: Tensor, scale: float | Tensor, *, backend: str | None = None
) -> Tensor:
    """NT-Xent of SimCLR: of all other views in the batch, which is of the same thing?

    Equivalent, without ever storing the (2·N, 2·N) logits, to ::

        views = torch.cat([first, second])
        logits = (scale * views @ views.T).fill_diagonal_(-inf)
        F.cross_entropy(logits, (torch.arange(2 * N) + N) % (2 * N))

    Args:
        first, second: (N, D), any floating-point dtype; rows of unit length, row i of both of the
            same thing.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`, or the views differ in their rows.

    Memory:
        O(N) and the views once more, one after the other; half the work, since the matrix is its
        own transpose.

    Reference:
        Chen et al., A Simple Framework for Contrastive Learning of Visual Representations, 2020,
        https://arxiv.org/abs/2002.05709

    Example:
        >>> import torch, mmcore
        >>> first, second = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.functional.nt_xent_loss(first, second, scale=10.0).shape
        torch.Size([])
    """
    warn_of_local_batch("nt_xent_loss")
    check.check_scale("scale", scale)
    first, second = operands.multiplied(first, second)
    views = _both(first, second)
    itself = torch.arange(views.shape[0], device=views.device)
    other = itself.roll(first.shape[0])
    statistics = softmax_similarity(
        views, views, scale, target=other, row_group=itself, columns=False, backend=backend
    )
    return as_loss((statistics.row_lse - statistics.row_pos).mean(), views)


@scale_not_temperature
def dcl_loss(
    first: Tensor,
    second: Tensor,
    scale: float | Tensor,
    *,
    sigma: float | None = None,
    backend: str | None = None,
) -> Tensor:
    """Decoupled contrastive loss: NT-Xent whose denominators leave the positive out; DCLW.

    Equivalent, without ever storing the (2·N, 2·N) logits, to ::

        views = torch.cat([first, second])
        logits = scale * views @ views.T
        other = (torch.arange(2 * N) + N) % (2 * N)
        positive = logits[torch.arange(2 * N), other]
        is_negative = ~torch.eye(2 * N, dtype=bool) & ~torch.eye(2 * N, dtype=bool)[other]
        (logits.masked_fill(~is_negative, -inf).logsumexp(1) - weight * positive).mean()

    where `weight` is 1, or with `sigma`, in the weighted form, for both views of thing i ::

        2 - N * torch.softmax((first * second).sum(1).detach() / sigma, 0)[i]

    Args:
        first, second: (N, D), any floating-point dtype; rows of unit length, row i of both of the
            same thing.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        sigma: above 0, for DCLW; None for DCL.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs); −inf for one pair, which has no negatives.

    Raises:
        TypeError, ValueError: as `softmax_similarity`, the views differ in their rows, or `sigma`
            is not above 0.

    Memory:
        As `nt_xent_loss`.

    Reference:
        Yeh et al., Decoupled Contrastive Learning, 2021, https://arxiv.org/abs/2110.06848

    Example:
        >>> import torch, mmcore
        >>> first, second = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.functional.dcl_loss(first, second, scale=10.0, sigma=0.5).shape
        torch.Size([])
    """
    warn_of_local_batch("dcl_loss")
    check.check_scale("scale", scale)
    first, second = operands.multiplied(first, second)
    views = _both(first, second)
    if sigma is not None:
        sigma = check.check_positive("sigma", sigma)
    itself = torch.arange(views.shape[0], device=views.device)
    # By label, not by target: positives are mutual, so that half of the matrix is enough.
    statistics = softmax_similarity(
        views, views, scale, row_label=itself % first.shape[0], row_group=itself,
        denominator="negatives", columns=False, backend=backend,
    )  # fmt: skip
    positive = statistics.row_pos
    if sigma is not None:
        cosine = (first.detach().double() * second.detach().double()).sum(1)
        weight = 2 - first.shape[0] * torch.softmax(cosine / sigma, 0)
        positive = torch.cat([weight, weight]) * positive
    return as_loss((statistics.row_lse - positive).mean(), views)


def _both(first: Tensor, second: Tensor) -> Tensor:
    check.check_features(first, second, "first", "second")
    check.check_same_rows("second", second, first, "first")
    with without_autocast(first.device.type):  # which takes no rows in its other 16-bit dtype
        return torch.cat([first, second])
