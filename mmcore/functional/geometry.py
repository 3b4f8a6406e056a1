"""How embeddings lie: alignment of pairs, uniformity of all."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.reductions import as_loss
from mmcore.functional.similarity import softmax_similarity


def alignment_loss(x: Tensor, y: Tensor, *, power: float = 2.0) -> Tensor:
    """Mean distance of pairs, to a power: low where rows that belong together lie together.

    Equivalent to ``(x - y).norm(dim=1).pow(power).mean()``, with gradient 0 where rows are equal.

    Args:
        x, y: (N, D), any floating-point dtype; row i of both belong together.
        power: above 0.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, or `power` is not
            above 0.

    Memory:
        O(N·D), as the expression itself.

    Reference:
        Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, 2020, https://arxiv.org/abs/2005.10242

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> mmcore.functional.alignment_loss(x, x.roll(1, 0)).shape
        torch.Size([])
    """
    check.check_features(x, y)
    check.check_same_rows("y", y, x)
    check.check_positive("power", power)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    square = (x.to(wide) - y.to(wide)).square().sum(1)
    # Where rows are equal the gradient is 0, of a root as well.
    distance = torch.where(square > 0, square, 1.0).pow(power / 2)
    return as_loss(torch.where(square > 0, distance, 0.0).mean(), x)


def uniformity_loss(x: Tensor, *, temperature: float = 2.0, backend: str | None = None) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs: low where rows are spread evenly.

    Equivalent, without ever storing the (N, N) distances, to ::

        torch.pdist(x).pow(2).mul(-temperature).exp().mean().log()

    Args:
        x: (N, D), any floating-point dtype; rows of unit length. Others may be given; where they
            are much longer than their distances, these lose digits. N ≥ 2.
        temperature: t above 0.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`, `x` has fewer than 2 rows, or `temperature`
            is not above 0.

    Memory:
        As `softmax_similarity`.

    Reference:
        Wang and Isola, Understanding Contrastive Representation Learning through Alignment and
        Uniformity on the Hypersphere, 2020, https://arxiv.org/abs/2005.10242

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(100, 8))
        >>> mmcore.functional.uniformity_loss(x).item() < 0
        True
    """
    check.check_matrix("x", x)
    check.check_positive("temperature", temperature)
    rows = x.shape[0]
    if rows < 2:
        raise ValueError(f"x must have at least 2 rows, got {rows}")
    # −t·‖x − y‖² = 2t·⟨x, y⟩ − t·‖x‖² − t·‖y‖²
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    lengths = -temperature * x.to(wide).square().sum(1)
    itself = torch.arange(rows, device=x.device)
    statistics = softmax_similarity(
        x, x, 2 * temperature, row_bias=lengths, col_bias=lengths, row_group=itself, columns=False,
        target=torch.full_like(itself, -1), backend=backend,
    )  # fmt: skip
    return as_loss(statistics.row_lse.logsumexp(0) - math.log(rows * (rows - 1)), x)
