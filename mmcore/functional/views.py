"""Objectives of two views of the same things: NT-Xent, DCL."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, Rows, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_of_rows
from mmcore.functional.similarity import softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops.define import without_autocast


@scale_not_temperature
@tells_ranks
def nt_xent_loss(
    first: Tensor,
    second: Tensor,
    scale: float | Tensor,
    *,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
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
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
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
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("nt_xent_loss", process_group)
    check.check_scale("scale", scale)
    first, second = operands.multiplied(first, second)
    views = _both(first, second, ranks)
    itself = torch.arange(views.shape[0], device=views.device)
    pairs: dict[str, Any] = {"target": itself.roll(first.shape[0]), "row_group": itself}
    if ranks is not None:
        # By label, not by target: of mutual positives half of the matrix is enough.
        pairs = _things(first, views, "nt_xent_loss", ranks)
    statistics = softmax_similarity(
        views, views, scale, columns=False, process_group=ranks, backend=backend, **pairs
    )
    return as_loss(mean_of_rows(statistics.row_lse - statistics.row_pos, ranks), views)


@scale_not_temperature
@tells_ranks
def dcl_loss(
    first: Tensor,
    second: Tensor,
    scale: float | Tensor,
    *,
    sigma: float | None = None,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
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
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
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
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("dcl_loss", process_group)
    check.check_scale("scale", scale)
    first, second = operands.multiplied(first, second)
    views = _both(first, second, ranks)
    if sigma is not None:
        sigma = check.check_positive("sigma", sigma)
    itself, rows = torch.arange(views.shape[0], device=views.device), None
    pairs: dict[str, Any] = {"row_label": itself % max(1, first.shape[0]), "row_group": itself}
    if ranks is not None:
        (rows,) = ranks.rows("dcl_loss", first=first)
        pairs = _things(first, views, "dcl_loss", ranks)
    # By label, not by target: positives are mutual, so that half of the matrix is enough.
    statistics = softmax_similarity(
        views, views, scale, denominator="negatives", columns=False, process_group=ranks,
        backend=backend, **pairs,
    )  # fmt: skip
    positive = statistics.row_pos
    if sigma is not None:
        cosine = (first.detach().double() * second.detach().double()).sum(1)
        weight = 2 - _share(cosine / sigma, rows)
        positive = torch.cat([weight, weight]) * positive
    return as_loss(mean_of_rows(statistics.row_lse - positive, ranks), views)


def _things(first: Tensor, views: Tensor, function: str, ranks: Ranks) -> dict[str, Tensor]:
    """Which thing, and which view, each row is of, among those of all ranks."""
    rows, every = ranks.rows(function, first=first, views=views)
    return {"row_label": rows.numbers(first).repeat(2), "row_group": every.numbers(views)}


def _share(values: Tensor, rows: Rows | None) -> Tensor:
    """N·softmax(values), over the values of all ranks."""
    if rows is None:
        return values.shape[0] * torch.softmax(values, 0)
    every = rows.ranks.each(values.logsumexp(0)).logsumexp(0)
    return rows.total(values.device) * (values - every).exp()


def _both(first: Tensor, second: Tensor, ranks: Ranks | None) -> Tensor:
    check.check_features(first, second, "first", "second", may_be_empty=ranks is not None)
    check.check_same_rows("second", second, first, "first")
    with without_autocast(first.device.type):  # which takes no rows in its other 16-bit dtype
        return torch.cat([first, second])
