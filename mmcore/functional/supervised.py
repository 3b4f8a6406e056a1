"""Objectives with several positives: SupCon, UniCL, MIL-NCE."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_of
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops.pairs import count_equal_ids


@scale_not_temperature
@tells_ranks
def sup_con_loss(
    x: Tensor,
    label: Tensor,
    scale: float | Tensor,
    *,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Supervised contrastive loss: rows of a class are positives of each other, but not of itself.

    Equivalent, without ever storing the (N, N) logits, to ::

        logits = (scale * x @ x.T).fill_diagonal_(-inf)
        positive = (label[:, None] == label) & (label[:, None] != -1) & ~torch.eye(N, dtype=bool)
        count = positive.sum(1)
        loss = logits.logsumexp(1) - torch.where(positive, logits, 0).sum(1) / count
        loss[count > 0].mean()

    Args:
        x: (N, D), any floating-point dtype; rows of unit length; the views of a batch one after
            the other.
        label: (N,) integers, the class of each row; -1 is no class.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs): the mean over rows that have a positive, 0 if
        none has. A row without one is a negative of the others all the same.

    Raises:
        TypeError, ValueError: as `softmax_similarity`.

    Memory:
        As `softmax_similarity`; half the work, since the matrix is its own transpose.

    Reference:
        Khosla et al., Supervised Contrastive Learning, 2020, https://arxiv.org/abs/2004.11362

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(6, 8))
        >>> label = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> mmcore.functional.sup_con_loss(x, label, scale=10.0).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("sup_con_loss", process_group)
    check.check_scale("scale", scale)
    check.check_matrix("x", x)
    label = check.check_indices("label", label, x.shape[0], "x", x)
    itself, labels = torch.arange(x.shape[0], device=x.device), label
    if ranks is not None:
        (rows,) = ranks.rows("sup_con_loss", x=x)
        itself, labels = rows.numbers(x), rows.gathered(label)
    statistics = softmax_similarity(
        x, x, scale, row_label=label, row_group=itself, columns=False, process_group=ranks,
        backend=backend,
    )  # fmt: skip
    count = count_equal_ids(label, labels) - (label != -1).long()
    return as_loss(_mean_over_positives(statistics.row_lse, statistics.row_pos, count, ranks), x)


@scale_not_temperature
@tells_ranks
def unicl_loss(
    x: Tensor,
    y: Tensor,
    row_label: Tensor,
    col_label: Tensor,
    scale: float | Tensor,
    *,
    row_group: Tensor | None = None,
    col_group: Tensor | None = None,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """CLIP with classes (UniCL): pairs of equal labels are positives, in both directions.

    Equivalent, without ever storing the (N, M) logits, to the mean of ::

        logits = scale * x @ y.T
        positive = (row_label[:, None] == col_label) & (row_label[:, None] != -1)
        same_group = (row_group[:, None] == col_group) & (row_group[:, None] != -1)
        logits = logits.masked_fill(same_group & ~positive, -inf)
        count = positive.sum(1)
        loss = logits.logsumexp(1) - torch.where(positive, logits, 0).sum(1) / count
        loss[count > 0].mean()

    and of the same with rows and columns exchanged.

    Args:
        x: (N, D), any floating-point dtype; rows of unit length.
        y: (M, D), in the dtype of `x`.
        row_label, col_label: (N,) and (M,) integers, the classes of the rows of `x` and of `y`; -1
            is no class.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        row_group, col_group: (N,) and (M,) integers. Pairs of equal groups are no negatives of each
            other, such as two names of one drawing; -1 is equal to nothing. Positives stay.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs). Rows and columns without a positive take no part.

    Raises:
        TypeError, ValueError: as `softmax_similarity`.

    Memory:
        As `softmax_similarity`; two passes over the matrix where groups are given.

    Reference:
        Yang et al., Unified Contrastive Learning in Image-Text-Label Space, 2022,
        https://arxiv.org/abs/2204.03610

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> label = torch.tensor([0, 0, 1, 2])
        >>> mmcore.functional.unicl_loss(x, y, label, label, scale=14.0).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("unicl_loss", process_group)
    check.check_scale("scale", scale)
    row_label = check.as_integers("row_label", row_label)
    col_label = check.as_integers("col_label", col_label)
    statistics = softmax_similarity(
        x, y, scale, row_label=row_label, col_label=col_label, row_group=row_group,
        col_group=col_group, denominator="all" if row_group is None else "negatives",
        process_group=ranks, backend=backend,
    )  # fmt: skip
    counts = _equal_ids(x, y, row_label, col_label, ranks)
    if row_group is not None:
        positives = softmax_similarity(
            x, y, scale, row_label=row_label, col_label=col_label, denominator="positives",
            process_group=ranks, backend=backend,
        )  # fmt: skip
        statistics = _with_all_positives(statistics, positives, counts)
    row_lse, col_lse, row_pos, col_pos = statistics
    rows = _mean_over_positives(row_lse, row_pos, counts[0], ranks)
    columns = _mean_over_positives(col_lse, col_pos, counts[1], ranks)
    return as_loss((rows + columns) / 2, x)


def _with_all_positives(
    negatives: SoftmaxStatistics, positives: SoftmaxStatistics, counts: tuple[Tensor, Tensor]
) -> SoftmaxStatistics:
    """Statistics over negatives and positives, where groups left out positives by label too."""

    def both(lse: Tensor, lse_of_positives: Tensor, count: Tensor) -> Tensor:
        # A row without positives, maybe without negatives too, takes no part: 0 keeps NaN away.
        return torch.logaddexp(lse, torch.where(count > 0, lse_of_positives, 0.0))

    row_lse, col_lse = map(both, negatives[:2], positives[:2], counts)
    return SoftmaxStatistics(row_lse, col_lse, positives.row_pos, positives.col_pos)


@scale_not_temperature
@tells_ranks
def mil_nce_loss(
    x: Tensor,
    y: Tensor,
    row_label: Tensor,
    col_label: Tensor,
    scale: float | Tensor,
    *,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """MIL-NCE: of several candidates at least one belongs to the row, and which is not known.

    Equivalent, without ever storing the (N, M) logits, to ::

        logits = scale * x @ y.T
        positive = (row_label[:, None] == col_label) & (row_label[:, None] != -1)
        loss = logits.logsumexp(1) - logits.masked_fill(~positive, -inf).logsumexp(1)
        loss[positive.any(1)].mean()

    Args:
        x: (N, D), any floating-point dtype; rows of unit length, such as video clips.
        y: (M, D), in the dtype of `x`, such as several captions near each clip.
        row_label, col_label: (N,) and (M,) integers: candidates of a row have its label; -1 is
            none.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs): the mean over rows that have a candidate.

    Raises:
        TypeError, ValueError: as `softmax_similarity`.

    Memory:
        As `softmax_similarity`; on a GPU in two passes over the matrix.

    Reference:
        Miech et al., End-to-End Learning of Visual Representations from Uncurated Instructional
        Videos, 2019, https://arxiv.org/abs/1912.06430

    Example:
        >>> import torch, mmcore
        >>> clips, captions = (mmcore.functional.l2_normalize(torch.randn(n, 8)) for n in (3, 6))
        >>> near = torch.tensor([0, 0, 1, 1, 2, 2])
        >>> mmcore.functional.mil_nce_loss(clips, captions, torch.arange(3), near, 14.0).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("mil_nce_loss", process_group)
    check.check_scale("scale", scale)
    row_label = check.as_integers("row_label", row_label)
    col_label = check.as_integers("col_label", col_label)
    statistics = softmax_similarity(
        x, y, scale, row_label=row_label, col_label=col_label, positives="log_sum_exp",
        columns=False, process_group=ranks, backend=backend,
    )  # fmt: skip
    has_candidate = _equal_ids(x, y, row_label, col_label, ranks)[0] > 0
    # A row without candidates has −inf, whose gradient would be NaN.
    candidates = torch.where(has_candidate, statistics.row_pos, statistics.row_lse)
    return as_loss(mean_of(statistics.row_lse - candidates, has_candidate, ranks), x)


def _mean_over_positives(
    lse: Tensor, positive: Tensor, count: Tensor, ranks: Ranks | None
) -> Tensor:
    """lse − Σ of positives / how many, over rows that have any."""
    return mean_of(lse - positive / count.clamp(min=1), count > 0, ranks)


def _equal_ids(
    x: Tensor, y: Tensor, row_label: Tensor, col_label: Tensor, ranks: Ranks | None
) -> tuple[Tensor, Tensor]:
    """How many columns have the label of each row, and how many rows that of each column."""
    row_labels, col_labels = row_label, col_label
    if ranks is not None:
        rows, columns = ranks.rows("labels", x=x, y=y)
        row_labels, col_labels = rows.gathered(row_label), columns.gathered(col_label)
    return count_equal_ids(row_label, col_labels), count_equal_ids(col_label, row_labels)
