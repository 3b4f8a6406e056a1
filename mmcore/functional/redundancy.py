"""Objectives that keep features from repeating each other: Barlow Twins, VICReg, soft CCA."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.geometry import alignment_loss
from mmcore.functional.gram import Sums, count_of_rows, off_diagonal, sums_of
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss


@tells_ranks
def barlow_twins_loss(
    first: Tensor,
    second: Tensor,
    *,
    off_diagonal_weight: float = 5e-3,
    eps: float = 1e-5,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Barlow Twins: every feature like itself in the other view, and unlike all others.

    Equivalent, without ever storing the standardised views, to ::

        a, b = (F.batch_norm(z, None, None, training=True, eps=eps) for z in (first, second))
        correlation = a.T @ b / N
        on = (1 - correlation.diagonal()).square().sum()
        off = correlation.fill_diagonal_(0).square().sum()
        on + off_diagonal_weight * off

    Args:
        first, second: (N, D), any floating-point dtype, not normalised; row i of both of the same
            thing. N ≥ 2.
        off_diagonal_weight: at least 0: how much correlations of different features count.
        eps: above 0, added to each column's variance, Σ(z − mean)²/N. A column that is constant has
            correlation 0 with all.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, there are fewer than 2
            rows, or an option is out of its range.

    Memory:
        O(D²), and as `gram`.

    Reference:
        Zbontar et al., Barlow Twins, 2021, https://arxiv.org/abs/2103.03230

    Example:
        >>> import torch, mmcore
        >>> first, second = torch.randn(100, 8), torch.randn(100, 8)
        >>> mmcore.functional.barlow_twins_loss(first, second).item() > 4
        True
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("barlow_twins_loss", process_group)
    first, second = operands.promoted(first, second)
    _check_views(first, second, ranks, "first", "second")
    off_diagonal_weight = check.check_not_negative("off_diagonal_weight", off_diagonal_weight)
    eps = check.check_positive("eps", eps)
    rows, _ = count_of_rows("barlow_twins_loss", ranks, first=first, second=second)
    sums = sums_of(first, second, True, backend, xy=True, diagonals=True, ranks=ranks)
    x_inverse_std, y_inverse_std = _inverse_stds(sums, rows, eps)
    across = sums.diagonals[1] / rows * x_inverse_std * y_inverse_std
    on = (1 - across).square().sum()
    scaled = off_diagonal(sums.xy) * _outer(x_inverse_std, y_inverse_std, sums.xy) / rows
    return as_loss(on + off_diagonal_weight * scaled.square().sum(), first)


@tells_ranks
def vicreg_loss(
    first: Tensor,
    second: Tensor,
    *,
    invariance_weight: float = 25.0,
    variance_weight: float = 25.0,
    covariance_weight: float = 1.0,
    eps: float = 1e-4,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """VICReg: views alike (invariance), features spread (variance) and unlike (covariance).

    Equivalent to ::

        invariance = F.mse_loss(first, second)
        variance = sum(F.relu(1 - (z.var(0) + eps).sqrt()).mean() for z in (first, second)) / 2
        covariance = sum(z.T.cov().fill_diagonal_(0).square().sum() / D for z in (first, second))
        invariance_weight * invariance + variance_weight * variance + covariance_weight * covariance

    as the authors' code has it; the paper's formulas leave the invariance undivided by D and the
    variance unhalved.

    Args:
        first, second: (N, D), any floating-point dtype, not normalised; row i of both of the same
            thing. N ≥ 2.
        invariance_weight, variance_weight, covariance_weight: at least 0.
        eps: above 0, added to each column's variance, Σ(z − mean)²/(N − 1).
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, there are fewer than 2
            rows, or an option is out of its range.

    Memory:
        O(D²) for variance and covariance, as `gram`; O(N·D) in float32 for the invariance.

    Reference:
        Bardes et al., VICReg, 2022, https://arxiv.org/abs/2105.04906

    Example:
        >>> import torch, mmcore
        >>> first, second = torch.randn(100, 8), torch.randn(100, 8)
        >>> mmcore.functional.vicreg_loss(first, second).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("vicreg_loss", process_group)
    first, second = operands.promoted(first, second)
    _check_views(first, second, ranks, "first", "second")
    invariance_weight = check.check_not_negative("invariance_weight", invariance_weight)
    variance_weight = check.check_not_negative("variance_weight", variance_weight)
    covariance_weight = check.check_not_negative("covariance_weight", covariance_weight)
    eps = check.check_positive("eps", eps)
    width = first.shape[1]
    rows, _ = count_of_rows("vicreg_loss", ranks, first=first, second=second)
    variance, covariance = (
        sum(terms)
        for terms in zip(
            *(_spread(z, rows, eps, ranks, backend) for z in (first, second)), strict=True
        )
    )
    return as_loss(
        invariance_weight * alignment_loss(first, second, process_group=ranks) / width
        + variance_weight * variance / 2
        + covariance_weight * covariance / width,
        first,
    )


@tells_ranks
def soft_cca_loss(
    x: Tensor,
    y: Tensor,
    *,
    decorrelation_weight: float,
    eps: float = 1e-5,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Soft CCA: standardised pairs alike, and the features of each side without correlation.

    Equivalent, without ever storing the standardised sides, to ::

        x, y = (F.batch_norm(z, None, None, training=True, eps=eps) for z in (x, y))
        distance = (x - y).square().sum(1).mean() / 2
        decorrelation = sum(z.T.cov().fill_diagonal_(0).abs().sum() for z in (x, y))
        distance + decorrelation_weight * decorrelation

    The covariance is that of the batch. The paper's is a running mean over batches, a state that
    this function does not have: batches want several times D rows.

    Args:
        x, y: (N, D), any floating-point dtype, not normalised; row i of both belong together.
            N ≥ 2.
        decorrelation_weight: at least 0. It multiplies a sum of 2·D·(D − 1) numbers, beside a
            distance of the size of D.
        eps: above 0, added to each column's variance, Σ(z − mean)²/N.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, there are fewer than 2
            rows, or an option is out of its range.

    Memory:
        O(D²), and as `gram`.

    Reference:
        Chang et al., Scalable and Effective Deep CCA via Soft Decorrelation, 2018,
        https://arxiv.org/abs/1707.09669

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), torch.randn(100, 8)
        >>> mmcore.functional.soft_cca_loss(x, y, decorrelation_weight=0.1).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("soft_cca_loss", process_group)
    x, y = operands.promoted(x, y)
    _check_views(x, y, ranks)
    decorrelation_weight = check.check_not_negative("decorrelation_weight", decorrelation_weight)
    eps = check.check_positive("eps", eps)
    rows, _ = count_of_rows("soft_cca_loss", ranks, x=x, y=y)
    sums = sums_of(x, y, True, backend, xx=True, yy=True, diagonals=True, ranks=ranks)
    x_inverse_std, y_inverse_std = _inverse_stds(sums, rows, eps)
    # ‖x/σ − y/τ‖² by columns: sums in float64, so that their difference keeps its digits.
    scales = torch.stack(
        [
            x_inverse_std * x_inverse_std,
            -2 * x_inverse_std * y_inverse_std,
            y_inverse_std * y_inverse_std,
        ]
    )
    distance = (sums.diagonals * scales).sum() / (2 * rows)
    decorrelation = sum(
        (off_diagonal(matrix) * _outer(scale, scale, matrix)).abs().sum() / (rows - 1)
        for matrix, scale in ((sums.xx, x_inverse_std), (sums.yy, y_inverse_std))
    )
    return as_loss(distance + decorrelation_weight * decorrelation, x)


def _spread(
    view: Tensor, rows: int | Tensor, eps: float, ranks: Ranks | None, backend: str | None
) -> tuple[Tensor, Tensor]:
    """Mean shortfall of the standard deviations from 1; sum of the squared covariances."""
    covariance = sums_of(view, None, True, backend, xx=True, ranks=ranks).xx / (rows - 1)
    std = (covariance.diagonal() + eps).sqrt()
    return torch.relu(1 - std).mean(), off_diagonal(covariance).square().sum()


def _check_views(
    x: Tensor, y: Tensor, ranks: Ranks | None, x_name: str = "x", y_name: str = "y"
) -> None:
    check.check_features(x, y, x_name, y_name, ranks is not None)
    check.check_same_rows(y_name, y, x, x_name)


def _inverse_stds(sums: Sums, rows: int | Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x_inverse_std, y_inverse_std = ((sums.diagonals[i] / rows + eps).rsqrt() for i in (0, 2))
    return x_inverse_std, y_inverse_std


def _outer(row: Tensor, column: Tensor, like: Tensor) -> Tensor:
    return row.to(like.dtype)[:, None] * column.to(like.dtype)
