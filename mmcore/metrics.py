"""How two modalities lie in the shared space: gap, separability, rank, similarity of geometries.

Sums over rows are float64 and taken some rows at a time, so that nothing N×N and no float64 copy of
the features is stored. Alignment and uniformity are `mmcore.functional.alignment_loss` and
`uniformity_loss`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.fx
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.tracing import refuse_script

__all__ = ["effective_rank", "linear_cka", "linear_separability", "modality_gap"]

ROWS_AT_A_TIME = 8192


@tells_ranks
def modality_gap(x: Tensor, y: Tensor, *, process_group: ProcessGroup = None) -> Tensor:
    """Distance between the means of two modalities, which CLIP leaves apart.

    Equivalent to ``(x.mean(0) - y.mean(0)).norm()``.

    Args:
        x: (N, D), any floating-point dtype; rows of unit length as a rule.
        y: (M, D), in the dtype of `x`.
        process_group: whose processes hold the other rows, as in `functional.softmax_similarity`.

    Returns:
        0-D float64, without a gradient: 0 for equal means, at most 2 for rows of unit length.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together.

    Memory:
        O(D).

    Reference:
        Liang et al., Mind the Gap, 2022, https://arxiv.org/abs/2203.02053

    Example:
        >>> import torch, mmcore
        >>> x = torch.eye(4)
        >>> mmcore.metrics.modality_gap(x, -x).item()
        1.0
    """
    ranks = as_ranks(process_group)
    x, y = operands.promoted(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    _agree("modality_gap", ranks, x=x, y=y)
    gap: Tensor = torch.linalg.vector_norm(_mean(x, ranks) - _mean(y, ranks))
    return gap


@tells_ranks
def effective_rank(x: Tensor, *, process_group: ProcessGroup = None) -> Tensor:
    """How many directions the rows use: exp of the entropy of their singular values.

    Equivalent to ::

        singular = torch.linalg.svdvals(x - x.mean(0))
        share = singular / singular.sum()
        (-(share * share.log()).sum()).exp()

    Args:
        x: (N, D), any floating-point dtype.
        process_group: whose processes hold the other rows, as in `functional.softmax_similarity`.

    Returns:
        0-D float64, without a gradient: from 1, all rows on a line, to min(N − 1, D). Rows that
        are all equal, and NaN or inf in a row, give NaN.

    Raises:
        TypeError, ValueError: `x` is no matrix of floating-point numbers, or has no rows.

    Memory:
        O(D²). Singular values below 1e-8 of the largest are lost, because their squares are what is
        summed.

    Reference:
        Roy and Vetterli, The Effective Rank, 2007, https://ieeexplore.ieee.org/document/7098875

    Example:
        >>> import torch, mmcore
        >>> x = torch.cat([torch.eye(3), -torch.eye(3)])
        >>> round(mmcore.metrics.effective_rank(x).item(), 6)
        3.0
    """
    check.check_matrix("x", x)
    ranks = as_ranks(process_group)
    if ranks is None:
        check.check_rows("x", x)
    _agree("effective_rank", ranks, x=x)
    mean = _mean(x, ranks)
    product = _centred_product(x, x, mean, mean, ranks)
    # LAPACK raises an error for NaN and inf. Eigenvalues that are all 0 give NaN in their place.
    product = product.masked_fill(~product.isfinite().all(), 0)
    squares = torch.linalg.eigvalsh(product).clamp(min=0)
    singular = squares.sqrt()
    share = singular / singular.sum()
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()


@tells_ranks
def linear_cka(x: Tensor, y: Tensor, *, process_group: ProcessGroup = None) -> Tensor:
    """Whether two modalities place the same things alike: centred kernel alignment, linear kernel.

    Equivalent to ::

        x, y = x - x.mean(0), y - y.mean(0)
        (y.T @ x).norm().square() / ((x.T @ x).norm() * (y.T @ y).norm())

    Args:
        x: (N, D), any floating-point dtype.
        y: (N, E), in the dtype of `x`: row i of both is of the same thing; E need not be D.
        process_group: whose processes hold the other rows, as in `functional.softmax_similarity`.

    Returns:
        0-D float64, without a gradient: from 0 to 1, which is reached by rotations and scalings.
        Rows that are all equal give NaN.

    Raises:
        TypeError, ValueError: dtypes, devices or rows do not fit together.

    Memory:
        O((D + E)²), instead of the kernels' O(N²).

    Reference:
        Kornblith et al., Similarity of Neural Network Representations Revisited, 2019,
        https://arxiv.org/abs/1905.00414

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(100, 8)
        >>> round(mmcore.metrics.linear_cka(x, 3 * x.flip(1)).item(), 6)
        1.0
    """
    x, y = operands.promoted(x, y)
    ranks = as_ranks(process_group)
    check.check_pairs(x, y, may_be_empty=ranks is not None)
    _agree("linear_cka", ranks, x=x, y=y)
    x_mean, y_mean = _mean(x, ranks), _mean(y, ranks)
    across = _centred_product(x, y, x_mean, y_mean, ranks).square().sum()
    own = [
        _centred_product(z, z, mean, mean, ranks).norm() for z, mean in ((x, x_mean), (y, y_mean))
    ]
    alike: Tensor = across / (own[0] * own[1])
    return alike


@tells_ranks
def linear_separability(
    x: Tensor, y: Tensor, *, ridge: float = 1e-3, process_group: ProcessGroup = None
) -> Tensor:
    """How well a linear classifier tells two modalities apart, on rows that it has not seen.

    Fitted on the rows of even number and tried on the others, then the other way round::

        def fit(x, y):
            middle, gap = (x.mean(0) + y.mean(0)) / 2, x.mean(0) - y.mean(0)
            covariance = (torch.cov(x.T, correction=0) + torch.cov(y.T, correction=0)) / 2
            total = covariance + gap.outer(gap) / 4
            total += ridge * total.trace() / D * torch.eye(D)
            return torch.linalg.solve(total, gap), middle

        def accuracy(direction, middle, x, y):
            score = torch.cat([(x - middle) @ direction, (middle - y) @ direction])
            return correct(score[:N]).mean() / 2 + correct(score[N:]).mean() / 2

    where `correct` is 1 for a score above 0, ½ for one of 0. This is least squares to the targets 1
    and −1, with a ridge, both modalities weighing the same: the direction is Fisher's, and the
    threshold lies half way between the means.

    Args:
        x: (N, D), any floating-point dtype; N ≥ 2, M ≥ 2. Rows that repeat should not lie next to
            each other, or the classifier has seen what it is tried on.
        y: (M, D), in the dtype of `x`; M need not be N.
        ridge: above 0, relative to the mean variance of a column.
        process_group: whose processes hold the other rows, as in `functional.softmax_similarity`.

    Returns:
        0-D float64, without a gradient: the mean accuracy, at least 0.5: below that, which chance
        alone brings about, it counts as 0.5. NaN or inf in a row gives NaN.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, there are fewer than 2
            rows, or `ridge` is not above 0.

    Memory:
        O(D²).

    Reference:
        Shi et al., Towards Understanding the Modality Gap in CLIP, 2023, and Liang et al., Mind the
        Gap, 2022, https://arxiv.org/abs/2203.02053, on modalities that lie apart; Fisher, The Use
        of Multiple Measurements in Taxonomic Problems, 1936,
        https://doi.org/10.1111/j.1469-1809.1936.tb02137.x, on the direction.

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(100, 8)
        >>> mmcore.metrics.linear_separability(x, x + 9).item()
        1.0
    """
    x, y = operands.promoted(x, y)
    ranks = as_ranks(process_group)
    check.check_features(x, y, may_be_empty=ranks is not None)
    ridge = check.check_positive("ridge", ridge)
    odd = [0, 0]
    if ranks is not None:
        sides = ranks.rows("linear_separability", x=x, y=y)
        odd = [int(rows.offset(x.device)) % 2 for rows in sides]
    for name, value in (("x", x), ("y", y)) if ranks is None else ():
        check.check_several_rows(name, value)
    halves = [(x[(i + odd[0]) % 2 :: 2], y[(i + odd[1]) % 2 :: 2]) for i in range(2)]
    shares = []
    for seen, unseen in (halves, halves[::-1]):
        direction, middle = _discriminant(*seen, ridge, ranks)
        # The sides that x and y lie on have opposite signs.
        shares += [_share_above(unseen[0], middle, direction, ranks)]
        shares += [_share_above(unseen[1], middle, -direction, ranks)]
    accuracy: Tensor = torch.stack(shares).mean().clamp(min=0.5)
    return accuracy


def _discriminant(x: Tensor, y: Tensor, ridge: float, ranks: Ranks | None) -> tuple[Tensor, Tensor]:
    """Least squares to 1 and −1: its direction, up to a factor, and the point half way."""
    means = _mean(x, ranks), _mean(y, ranks)
    gap = means[0] - means[1]
    total = torch.outer(gap, gap) / 4
    for z, mean in zip((x, y), means, strict=True):
        total += _centred_product(z, z, mean, mean, ranks) / (2 * _count(z, ranks))
    variance = total.trace() / gap.shape[0]
    # Where all rows are equal, the gap is 0 and so is the direction, whatever is solved.
    variance = torch.where(variance == 0, 1, variance)
    total += ridge * variance * torch.eye(gap.shape[0], dtype=gap.dtype, device=gap.device)
    return torch.linalg.solve(total, gap), (means[0] + means[1]) / 2


def _share_above(x: Tensor, middle: Tensor, direction: Tensor, ranks: Ranks | None) -> Tensor:
    """Share of rows beyond the middle; rows that lie at it count half. NaN is on no side."""
    count = middle.new_zeros(())
    for piece in _pieces(x):
        score = (piece.double() - middle) @ direction
        side = (score > 0) + (score == 0) / 2
        count += torch.where(score.isnan(), score, side).sum()
    return _total(count, ranks) / _count(x, ranks)


def _mean(x: Tensor, ranks: Ranks | None) -> Tensor:
    # On a CPU torch widens what it sums in another dtype, all of it at once.
    total = x.new_zeros(x.shape[1], dtype=torch.float64)
    for piece in _pieces(x):
        total += piece.sum(0, dtype=torch.float64)
    return _total(total, ranks) / _count(x, ranks)


def _pieces(x: Tensor) -> Iterator[Tensor]:
    return iter(x.detach().split(ROWS_AT_A_TIME))


def _centred_product(
    x: Tensor, y: Tensor, x_mean: Tensor, y_mean: Tensor, ranks: Ranks | None
) -> Tensor:
    """(x − mean)ᵀ·(y − mean), float64."""
    total = x_mean.new_zeros(x.shape[1], y.shape[1])
    for left, right in zip(_pieces(x), _pieces(y), strict=True):
        total += (left.double() - x_mean).T @ (right.double() - y_mean)
    return _total(total, ranks)


def _agree(metric: str, ranks: Ranks | None, **sides: Tensor) -> None:
    if ranks is not None:
        ranks.rows(metric, **sides)


def _total(value: Tensor, ranks: Ranks | None) -> Tensor:
    """Over all ranks."""
    return value if ranks is None else ranks.total(value)


def _count(x: Tensor, ranks: Ranks | None) -> int | Tensor:
    """The rows of all ranks."""
    if ranks is None:
        return x.shape[0]
    return ranks.total(torch.full((), x.shape[0], dtype=torch.float64, device=x.device))


for _name in __all__:  # as in mmcore.functional
    torch.fx.wrap(_name)
    globals()[_name].__prepare_scriptable__ = refuse_script
