"""Sums over rows of products of columns: what D×D objectives are composed of."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.ranks import Ranks
from mmcore.ops import gram as gram_op


class Sums(NamedTuple):
    """Products of columns, summed over rows; empty where they were not asked for."""

    xx: Tensor
    """(D, D), float32 or float64."""
    xy: Tensor
    """(D, E)."""
    yy: Tensor
    """(E, E)."""
    diagonals: Tensor
    """(3, D) float64: the diagonals of xx, xy and yy."""


def gram(
    x: Tensor, y: Tensor | None = None, *, centred: bool = False, backend: str | None = None
) -> Tensor:
    """Gram matrix of columns: sums over rows of products of features, of one side or of two.

    Equivalent to ::

        x, y = x.float(), y.float()
        x, y = x - x.mean(0), y - y.mean(0)  # centred=True
        x.T @ y

    Args:
        x: (N, D), any floating-point dtype.
        y: (N, E), in the dtype of `x`; row i of both belong together. None: `x` itself.
        centred: whether each column's mean is taken off first. Divided by N − 1, the result is then
            the covariance.
        backend: see `mmcore.backend`. All are the same torch operations.

    Returns:
        (D, E), float32 (float64 for float64 inputs), for 16-bit inputs too. Autocast leaves it
        alone, but there `x` and `y` may differ in their dtypes; products of float32 numbers are as
        ``torch.get_float32_matmul_precision()`` says.

    Raises:
        TypeError, ValueError: dtypes, devices or rows do not fit together.

    Memory:
        The result, and a few slabs of centred or widened rows, each of 1 MiB on a CPU and 8 on a
        GPU, or the size of the result; never all N·D. Gradients are rounded once, to the dtype of
        their input.

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(100, 4)
        >>> covariance = mmcore.functional.gram(x, centred=True) / 99
        >>> torch.allclose(covariance, x.T.cov(), atol=1e-6)
        True
    """
    if y is not None:
        x, y = operands.promoted(x, y)
    check.check_matrix("x", x)
    check.check_rows("x", x)
    centred = check.check_flag("centred", centred)
    if y is None:
        return sums_of(x, None, centred, backend, xx=True).xx
    check.check_pairs(x, y)
    return sums_of(x, y, centred, backend, xy=True).xy


def sums_of(
    x: Tensor,
    y: Tensor | None,
    centred: bool,
    backend: str | None,
    *,
    xx: bool = False,
    xy: bool = False,
    yy: bool = False,
    diagonals: bool = False,
    ranks: Ranks | None = None,
) -> Sums:
    """Those of checked sides, in one call, so that their gradients are rounded together.

    With ranks those over the rows of all of them, of which every rank computes the same.
    """
    parts = (xx, xy, yy, diagonals)
    means: tuple[Tensor | None, Tensor | None] = (None, None)
    if centred:
        means = _mean(x, ranks, backend), None if y is None else _mean(y, ranks, backend)
    sums = Sums(*gram_op.call(x=x, y=y, means=means, parts=parts, backend=backend))
    if ranks is None:
        return sums
    return Sums(*(ranks.total(part) if part.numel() else part for part in sums))


def _mean(side: Tensor, ranks: Ranks | None, backend: str | None) -> Tensor:
    """Of the columns, over the rows of all ranks; float64, without a gradient."""
    if ranks is None:
        return gram_op.column_mean(side, backend=backend)
    total = side.new_zeros(side.shape[1], dtype=torch.float64)
    if side.shape[0]:
        total = gram_op.column_mean(side, backend=backend) * side.shape[0]
    every = ranks.total(torch.cat([total, total.new_full((1,), side.shape[0])]))
    return every[:-1] / every[-1]


def count_of_rows(function: str, ranks: Ranks | None, **sides: Tensor) -> list[int | Tensor]:
    """How many rows each side has, on all ranks; at least 2 on this process where it is alone."""
    if ranks is not None:
        found = ranks.rows(function, **sides)
        return [rows.total(side.device) for rows, side in zip(found, sides.values(), strict=True)]
    for name, side in sides.items():
        check.check_several_rows(name, side)
    return [side.shape[0] for side in sides.values()]


def off_diagonal(matrix: Tensor) -> Tensor:
    """The square matrix with zeros on its diagonal."""
    return matrix - torch.diag(matrix.diagonal())
