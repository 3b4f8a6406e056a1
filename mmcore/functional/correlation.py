"""Objectives on covariances of two sides: CCA, CORAL, CKA."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.gram import count_of_rows, sums_of
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss


@tells_ranks
def cca_loss(
    x: Tensor,
    y: Tensor,
    *,
    components: int | None = None,
    regularization: float = 1e-4,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Deep CCA: minus the sum of the largest canonical correlations of two sides.

    Equivalent, with D×D algebra in float64, to ::

        x, y = x - x.mean(0), y - y.mean(0)
        left = torch.linalg.cholesky(x.T @ x / (N - 1) + regularization * torch.eye(D))
        right = torch.linalg.cholesky(y.T @ y / (N - 1) + regularization * torch.eye(E))
        whitened = left.inverse() @ (x.T @ y / (N - 1)) @ right.inverse().T
        -torch.linalg.svdvals(whitened)[:components].sum()

    Args:
        x: (N, D), any floating-point dtype, not normalised. N ≥ 2, and several times D: of fewer
            rows than columns every correlation is near 1.
        y: (N, E), in the dtype of `x`; row i of both belong together; E need not be D.
        components: how many correlations are summed, from 1 to min(D, E); None: all.
        regularization: above 0, added to the diagonals of both covariances.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs), from −components to 0. A column that is constant
        has correlation 0 with all. Where correlations are 0, or where the last one that is summed
        equals the next, the gradient is one of several. NaN or inf in a feature gives NaN.

    Raises:
        TypeError, ValueError: dtypes, devices or rows do not fit together, there are fewer than 2
            rows, or an option is out of its range. torch.linalg.LinAlgError: `regularization` is
            below the rounding of the covariances, 1e-7 of their largest, where there are fewer rows
            than columns.

    Memory:
        O((D + E)²), and as `gram`.

    Reference:
        Andrew et al., Deep Canonical Correlation Analysis, 2013,
        https://proceedings.mlr.press/v28/andrew13.html

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(100, 4)
        >>> loss = mmcore.functional.cca_loss(x, 3 * x.flip(1), components=2)
        >>> round(loss.item(), 2)
        -2.0
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("cca_loss", process_group)
    x, y = operands.promoted(x, y)
    check.check_pairs(x, y, may_be_empty=ranks is not None)
    regularization = check.check_positive("regularization", regularization)
    most = min(x.shape[1], y.shape[1])
    if components is not None:
        components = check.check_count("components", components, most)
    rows, _ = count_of_rows("cca_loss", ranks, x=x, y=y)
    sums = sums_of(x, y, True, backend, xx=True, xy=True, yy=True, ranks=ranks)
    covariances = [matrix.double() / (rows - 1) for matrix in sums[:3]]
    (xx, xy, yy), nothing = _finite(covariances)
    left, right = (
        torch.linalg.cholesky(matrix + regularization * _identity(matrix)) for matrix in (xx, yy)
    )
    whitened = torch.linalg.solve_triangular(left, xy, upper=False)
    whitened = torch.linalg.solve_triangular(right.T, whitened, upper=True, left=False)
    return as_loss(nothing - torch.linalg.svdvals(whitened)[:components].sum(), x)


@tells_ranks
def coral_loss(
    x: Tensor,
    y: Tensor,
    *,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Deep CORAL: squared distance of the covariances of two sides, rows of which are no pairs.

    Equivalent to ``(x.T.cov() - y.T.cov()).square().sum() / (4 * D**2)``.

    Args:
        x: (N, D), any floating-point dtype, such as the features of the source domain. N ≥ 2.
        y: (M, D), in the dtype of `x`, such as those of the target domain. M ≥ 2, and need not be
            N.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, or a side has fewer
            than 2 rows.

    Memory:
        O(D²), and as `gram`.

    Reference:
        Sun and Saenko, Deep CORAL, 2016, https://arxiv.org/abs/1607.01719

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(100, 8), 2 * torch.randn(60, 8)
        >>> mmcore.functional.coral_loss(x, y).shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("coral_loss", process_group)
    x, y = operands.promoted(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    counts = count_of_rows("coral_loss", ranks, x=x, y=y)
    covariances = [
        sums_of(z, None, True, backend, xx=True, ranks=ranks).xx / (rows - 1)
        for z, rows in zip((x, y), counts, strict=True)
    ]
    distance = (covariances[0] - covariances[1]).square().sum()
    return as_loss(distance / (4 * x.shape[1] ** 2), x)


@tells_ranks
def cka_loss(
    x: Tensor,
    y: Tensor,
    *,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """1 − CKA with a linear kernel: whether both sides place the same things alike.

    Equivalent to ::

        x, y = x - x.mean(0), y - y.mean(0)
        1 - (x.T @ y).norm().square() / ((x.T @ x).norm() * (y.T @ y).norm())

    `mmcore.metrics.linear_cka` is the same number, taken from 1, with float64 sums and without a
    gradient.

    Args:
        x: (N, D), any floating-point dtype.
        y: (N, E), in the dtype of `x`; row i of both is of the same thing; E need not be D.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs): from 0, which is reached by rotations and
        scalings, to 1. Where all rows of a side are equal it is 1, with gradient 0.

    Raises:
        TypeError, ValueError: dtypes, devices or rows do not fit together.

    Memory:
        O((D + E)²), and as `gram`, instead of the kernels' O(N²).

    Reference:
        Kornblith et al., Similarity of Neural Network Representations Revisited, 2019,
        https://arxiv.org/abs/1905.00414

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(100, 8)
        >>> abs(mmcore.functional.cka_loss(x, 3 * x.flip(1)).item()) < 1e-6
        True
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("cka_loss", process_group)
    x, y = operands.promoted(x, y)
    check.check_pairs(x, y, may_be_empty=ranks is not None)
    if ranks is not None:
        ranks.rows("cka_loss", x=x, y=y)
    sums = sums_of(x, y, True, backend, xx=True, xy=True, yy=True, ranks=ranks)
    squared_xx, squared_xy, squared_yy = (matrix.double().square().sum() for matrix in sums[:3])
    own = squared_xx * squared_yy
    is_there = _varies(sums[0], x, ranks) & _varies(sums[2], y, ranks) & (own != 0)
    alike = torch.where(is_there, squared_xy, 0.0) * torch.where(is_there, own, 1.0).rsqrt()
    return as_loss(1 - alike, x)


def _finite(matrices: Sequence[Tensor]) -> tuple[list[Tensor], Tensor]:
    """The matrices and 0; if NaN or inf is among them zeros and NaN, as a function of them.

    LAPACK raises an error for NaN and inf. What is added to the loss takes them to it, and to the
    gradients.
    """
    is_finite = torch.stack([matrix.isfinite().all() for matrix in matrices]).all()
    total = torch.stack([matrix.sum() for matrix in matrices]).sum()
    nothing = torch.where(is_finite, 0.0, torch.nan).to(total) * total
    return [matrix.masked_fill(~is_finite, 0) for matrix in matrices], nothing


def _varies(centred: Tensor, x: Tensor, ranks: Ranks | None) -> Tensor:
    """Whether rows differ by more than their mean in float64 was rounded; NaN differs."""
    squares = torch.linalg.vector_norm(x.detach(), dtype=torch.float64).square()
    if ranks is not None:
        squares = ranks.total(squares)
    rounding = (8 * torch.finfo(torch.float64).eps) ** 2 * squares
    is_constant: Tensor = centred.diagonal().sum() <= rounding
    return ~is_constant


def _identity(like: Tensor) -> Tensor:
    return torch.eye(len(like), dtype=like.dtype, device=like.device)
