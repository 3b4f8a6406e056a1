"""Objectives that weigh negatives by how hard they are."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.hardest_negatives import hardest_negatives
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, log_of_count, mean_of_rows
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity
from mmcore.functional.temperature import scale_not_temperature


@scale_not_temperature
@tells_ranks
def hard_negative_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    *,
    hardness: float = 1.0,
    positive_prior: float = 0.0,
    positive_weight: float = 1.0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """CLIP whose hard negatives count more, and whose false negatives are allowed for.

    Equivalent, without ever storing the (N, N) logits, to the mean of ::

        logits = scale * x @ y.T
        positive, n = logits.diagonal(), N - 1
        negatives = logits[~torch.eye(N, dtype=bool)].view(N, n)
        weight = n * torch.softmax(hardness * negatives, 1)
        total = (weight * negatives.exp()).sum(1)
        total = (total - positive_prior * n * positive.exp()) / (1 - positive_prior)
        total = total.clamp(min=n * math.exp(-scale))  # where positive_prior is above 0
        -(positive - (positive_weight * positive.exp() + total).log()).mean()

    and of the same with the logits transposed.

    Args:
        x: (N, D), any floating-point dtype; rows of unit length; N ≥ 2.
        y: (N, D), in the dtype of `x`; row i belongs to row i of `x`.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        hardness: β ≥ 0, by how much negatives are weighted; 0 weighs all alike.
        positive_prior: τ⁺ in [0, 1), the chance that a negative is of the row's own kind.
        positive_weight: α ≥ 0, of the positive in its own denominator; 0 decouples it as DCL does.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`, `x` and `y` differ in their rows or have
            fewer than 2, or an option is out of its range.

    Memory:
        As `softmax_similarity`; two passes over the matrix.

    Reference:
        Robinson et al., Contrastive Learning with Hard Negative Samples, 2020,
        https://arxiv.org/abs/2010.04592 (`hardness`, `positive_prior`). Radenovic et al.,
        Filtering, Distillation, and Hard Negatives for Vision-Language Pre-Training, 2023,
        https://arxiv.org/abs/2301.02280 (`hardness`, `positive_weight`).

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.functional.hard_negative_loss(x, y, scale=14.0, hardness=0.5).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("hard_negative_loss", process_group)
    x, y = operands.multiplied(x, y)
    hardness = check.check_not_negative("hardness", hardness)
    positive_prior = check.check_fraction("positive_prior", positive_prior)
    positive_weight = check.check_not_negative("positive_weight", positive_weight)
    check.check_scale("scale", scale)
    count = _count_of_negatives(x, y, ranks)
    # In float32 at least: a product of a 16-bit scale would be rounded to 16 bits.
    scale = check.as_scalar("scale", scale, x)
    scale = scale.to(torch.promote_types(scale.dtype, torch.float32))

    def negatives(scale: Tensor) -> SoftmaxStatistics:
        return softmax_similarity(
            x, y, scale, denominator="negatives", process_group=ranks, backend=backend
        )

    harder, weights = negatives((1 + hardness) * scale), negatives(hardness * scale)
    positive = harder.row_pos / (1 + hardness)
    rows, columns = (
        _loss_of_side(total, positive, scale, count, positive_prior, positive_weight, ranks)
        for total in (harder.row_lse - weights.row_lse, harder.col_lse - weights.col_lse)
    )
    return as_loss((rows + columns) / 2, x)


def _count_of_negatives(x: Tensor, y: Tensor, ranks: Ranks | None) -> int | Tensor:
    """How many each row has, of all ranks; checks both sides."""
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    if ranks is not None:
        return ranks.rows("hard_negative_loss", x=x, y=y)[0].total(x.device) - 1
    if x.shape[0] < 2:
        raise ValueError(
            f"x must have at least 2 rows, of which one is a negative, got {x.shape[0]}"
        )
    return x.shape[0] - 1


def _loss_of_side(
    weighted: Tensor, positive: Tensor, scale: Tensor, negatives: int | Tensor,
    positive_prior: float, positive_weight: float, ranks: Ranks | None,
) -> Tensor:  # fmt: skip
    """From log of the mean weighted negative, float64: logarithms, so that nothing overflows."""
    log_negatives = log_of_count(negatives, weighted)
    total = weighted + log_negatives
    if positive_prior:
        # log(e^total − τ·n·e^positive): where that is not above the floor, the floor stands.
        own = positive + math.log(positive_prior) + log_negatives
        floor = log_negatives - scale.detach().double()
        # Compared so that a NaN is no reason for the floor.
        is_below = own >= total
        rest = torch.where(is_below, -1.0, own - total).expm1().neg().log()
        corrected = total + rest - math.log1p(-positive_prior)
        total = torch.where(is_below | (corrected <= floor), floor, corrected)
    if positive_weight == 0:
        return mean_of_rows(total - positive, ranks)
    log_weight = math.log(positive_weight)
    return mean_of_rows(F.softplus(total - positive - log_weight), ranks) + log_weight


@tells_ranks
def vse_loss(
    x: Tensor,
    y: Tensor,
    *,
    margin: float = 0.2,
    group: Tensor | None = None,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """VSE++: the hinge of the hardest negative alone, of each row and of each column.

    Equivalent, without ever storing the (N, N) cosines, to ::

        cosine = x @ y.T
        positive = cosine.diagonal()
        negative = cosine.masked_fill(torch.eye(N, dtype=bool), -inf)
        rows = (margin + negative.amax(1) - positive).relu()
        columns = (margin + negative.amax(0) - positive).relu()
        (rows + columns).mean()

    The authors' code adds up the rows of a batch; this is their mean, as everywhere here.

    Args:
        x: (N, D), any floating-point dtype; rows of unit length.
        y: (N, D), in the dtype of `x`; row i belongs to row i of `x`.
        margin: at least 0, by how much the positive is to be nearer.
        group: (N,) integers. Pairs of equal groups are no negatives of each other; -1 is equal to
            nothing.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs). A row or column without any negative adds 0. The
        gradient goes to the hardest negative, of several equal ones to one.

    Raises:
        TypeError, ValueError: as `softmax_similarity`, `x` and `y` differ in their rows, or
            `margin` is below 0.

    Memory:
        As `hardest_negatives`.

    Reference:
        Faghri et al., VSE++: Improving Visual-Semantic Embeddings with Hard Negatives, 2017,
        https://arxiv.org/abs/1707.05612

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> mmcore.functional.vse_loss(x, y, margin=0.1).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("vse_loss", process_group)
    margin = check.check_not_negative("margin", margin)
    positive, *hardest, _, _ = hardest_negatives(
        x, y, group=group, process_group=ranks, backend=backend
    )
    rows, columns = (F.relu(margin + negative - positive) for negative in hardest)
    return as_loss(mean_of_rows(rows + columns, ranks), x)
