"""How two modalities lie in the shared space: gap, rank, similarity of their geometries.

Sums over rows are float64 and taken some rows at a time, so that nothing N×N and no float64 copy of
the features is stored. Alignment and uniformity are `mmcore.functional.alignment_loss` and
`uniformity_loss`.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from mmcore.functional import arguments as check

__all__ = ["effective_rank", "linear_cka", "modality_gap"]

ROWS_AT_A_TIME = 8192


def modality_gap(x: Tensor, y: Tensor) -> Tensor:
    """Distance between the means of two modalities, which CLIP leaves apart.

    Equivalent to ``(x.mean(0) - y.mean(0)).norm()``.

    Args:
        x: (N, D), any floating-point dtype; rows of unit length as a rule.
        y: (M, D), in the dtype of `x`.

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
    check.check_features(x, y)
    gap: Tensor = torch.linalg.vector_norm(_mean(x) - _mean(y))
    return gap


def effective_rank(x: Tensor) -> Tensor:
    """How many directions the rows use: exp of the entropy of their singular values.

    Equivalent to ::

        singular = torch.linalg.svdvals(x - x.mean(0))
        share = singular / singular.sum()
        (-(share * share.log()).sum()).exp()

    Args:
        x: (N, D), any floating-point dtype.

    Returns:
        0-D float64, without a gradient: from 1, all rows on a line, to min(N − 1, D). Rows that
        are all equal give NaN.

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
    check.check_rows("x", x)
    mean = _mean(x)
    squares = torch.linalg.eigvalsh(_centred_product(x, x, mean, mean)).clamp(min=0)
    singular = squares.sqrt()
    share = singular / singular.sum()
    entropy: Tensor = torch.special.entr(share).sum()
    return entropy.exp()


def linear_cka(x: Tensor, y: Tensor) -> Tensor:
    """Whether two modalities place the same things alike: centred kernel alignment, linear kernel.

    Equivalent to ::

        x, y = x - x.mean(0), y - y.mean(0)
        (y.T @ x).norm().square() / ((x.T @ x).norm() * (y.T @ y).norm())

    Args:
        x: (N, D), any floating-point dtype.
        y: (N, E), in the dtype of `x`: row i of both is of the same thing; E need not be D.

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
    check.check_pairs(x, y)
    of_x, of_y = _mean(x), _mean(y)
    across = _centred_product(x, y, of_x, of_y).square().sum()
    own = [_centred_product(z, z, mean, mean).norm() for z, mean in ((x, of_x), (y, of_y))]
    alike: Tensor = across / (own[0] * own[1])
    return alike


def _mean(x: Tensor) -> Tensor:
    return x.detach().mean(0, dtype=torch.float64)


def _pieces(x: Tensor) -> Iterator[Tensor]:
    return iter(x.detach().split(ROWS_AT_A_TIME))


def _centred_product(x: Tensor, y: Tensor, x_mean: Tensor, y_mean: Tensor) -> Tensor:
    """(x − mean)ᵀ·(y − mean), float64."""
    total = x_mean.new_zeros(x.shape[1], y.shape[1])
    for left, right in zip(_pieces(x), _pieces(y), strict=True):
        total += (left.double() - x_mean).T @ (right.double() - y_mean)
    return total
