"""How embeddings lie: alignment of pairs, uniformity of all, discrepancy of two sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, Rows, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, log_of_count, mean_of_rows
from mmcore.functional.similarity import softmax_similarity
from mmcore.ops.precision import as_multiplied


@tells_ranks
def alignment_loss(
    x: Tensor,
    y: Tensor,
    *,
    power: float = 2.0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
) -> Tensor:
    """Mean distance of pairs, to a power: low where rows that belong together lie together.

    Equivalent to ``(x - y).norm(dim=1).pow(power).mean()``, with gradient 0 where rows are equal.

    Args:
        x, y: (N, D), any floating-point dtype; row i of both belong together.
        power: above 0.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".

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
    ranks = as_ranks(process_group, gradients)
    x, y = operands.promoted(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    power = check.check_positive("power", power)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    square = (x.to(wide) - y.to(wide)).square().sum(1)
    # Where rows are equal the gradient is 0, of a root as well; NaN stays.
    differs = square != 0
    distance = torch.where(differs, square, 1.0).pow(power / 2)
    if ranks is not None:
        ranks.rows("alignment_loss", x=x, y=y)
    return as_loss(mean_of_rows(torch.where(differs, distance, 0.0), ranks), x)


@tells_ranks
def uniformity_loss(
    x: Tensor,
    *,
    temperature: float = 2.0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Logarithm of the mean Gaussian potential of all pairs: low where rows are spread evenly.

    Equivalent, without ever storing the (N, N) distances, to ::

        torch.pdist(x).pow(2).mul(-temperature).exp().mean().log()

    Args:
        x: (N, D), any floating-point dtype; rows of unit length. Others may be given; where they
            are much longer than their distances, these lose digits. N ≥ 2.
        temperature: t above 0.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
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
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("uniformity_loss", process_group)
    check.check_matrix("x", x)
    temperature = check.check_positive("temperature", temperature)
    rows = x.shape[0]
    if ranks is not None:
        return as_loss(_uniformity_of_ranks(x, temperature, ranks, backend), x)
    if rows < 2:
        raise ValueError(f"x must have at least 2 rows, got {rows}")
    itself = torch.arange(rows, device=x.device)
    row_lse = _row_lse(x, x, temperature, itself, None, backend)
    return as_loss(row_lse.logsumexp(0) - log_of_count(rows * (rows - 1), x), x)


def _uniformity_of_ranks(
    x: Tensor, temperature: float, ranks: Ranks, backend: str | None
) -> Tensor:
    (rows,) = ranks.rows("uniformity_loss", x=x)
    count = rows.total(x.device)
    row_lse = _row_lse(x, x, temperature, rows.numbers(x), ranks, backend)
    return ranks.each(row_lse.logsumexp(0)).logsumexp(0) - (count * (count - 1)).log()


@tells_ranks
def mmd_loss(
    x: Tensor,
    y: Tensor,
    *,
    bandwidths: Sequence[float] = (0.5, 1.0, 2.0),
    unbiased: bool = False,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Squared maximum mean discrepancy: how far apart two sets of rows are distributed.

    Equivalent, without ever storing the matrices of distances, to ::

        def kernel(a, b):
            square = torch.cdist(a, b).square()
            return torch.stack([(-square / (2 * s**2)).exp() for s in bandwidths]).mean(0)

        kernel(x, x).mean() + kernel(y, y).mean() - 2 * kernel(x, y).mean()

    and where `unbiased`, with the first two means over pairs of different rows.

    Rows need not belong together: the loss pulls whole modalities together, not pairs.

    Args:
        x: (N, D), any floating-point dtype.
        y: (M, D), in the dtype of `x`; M need not be N.
        bandwidths: the σ of the Gaussian kernels, above 0, in the units of distances; the kernel is
            their mean. The default suits rows of unit length, whose distances are around √2.
        unbiased: whether the expectation is the discrepancy itself, so that it is below 0 at times;
            otherwise it is at least 0, up to rounding. Needs N and M ≥ 2.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs). The three means are close to each other where the
        distributions are, and what is left of them has their absolute error: about 1e-7 times the
        larger of 1 and ‖x‖²/σ² for float32 and 16-bit features. A loss of that size is noise; means
        far from 0, which CLIP's modalities have, lose nothing by this at unit length.

    Raises:
        TypeError, ValueError: as `softmax_similarity`; bandwidths are none or not above 0; `x` or
            `y` has fewer than 2 rows where `unbiased`.

    Memory:
        As `softmax_similarity`; 2 passes for each bandwidth.

    Reference:
        Gretton et al., A Kernel Two-Sample Test, 2012,
        https://jmlr.org/papers/v13/gretton12a.html

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(n, 8)) for n in (100, 60))
        >>> near, far = (mmcore.functional.mmd_loss(x, z) for z in (y, y.abs()))
        >>> bool(near < far)
        True
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("mmd_loss", process_group)
    x, y = operands.promoted(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    bandwidths = _checked_bandwidths(bandwidths)
    unbiased = check.check_flag("unbiased", unbiased)
    if unbiased and ranks is None and min(x.shape[0], y.shape[0]) < 2:
        raise ValueError(
            f"x and y must have at least 2 rows where unbiased is True, got {x.shape[0]} and "
            f"{y.shape[0]}"
        )
    total = x.new_zeros((), dtype=torch.float64)
    sides = [_Side(x, x.shape[0], None), _Side(y, y.shape[0], None)]
    if ranks is not None:
        found = ranks.rows("mmd_loss", x=x, y=y)
        sides = [
            _Side(z, rows.total(x.device), rows) for z, rows in zip((x, y), found, strict=True)
        ]
    for bandwidth in bandwidths:
        rate = 0.5 / bandwidth**2
        total = total + sum(_mean_within(side, rate, unbiased, ranks, backend) for side in sides)
        across = _sum_of_kernel(x, y, rate, None, ranks, backend)
        total = total - 2 * across / (sides[0].number * sides[1].number)
    return as_loss(total / len(bandwidths), x)


class _Side(NamedTuple):
    """A set of rows; how many there are on all ranks."""

    rows: Tensor
    number: int | Tensor
    shards: Rows | None


def _mean_within(
    side: _Side, rate: float, unbiased: bool, ranks: Ranks | None, backend: str | None
) -> Tensor:
    """Mean kernel of the rows with each other; of a row with itself it is 1, without rounding."""
    x, count, shards = side
    itself = torch.arange(x.shape[0], device=x.device) if shards is None else shards.numbers(x)
    others = _sum_of_kernel(x, x, rate, itself, ranks, backend)
    return others / (count * (count - 1)) if unbiased else (others + count) / count**2


def _sum_of_kernel(
    x: Tensor, y: Tensor, rate: float, group: Tensor | None, ranks: Ranks | None,
    backend: str | None,
) -> Tensor:  # fmt: skip
    total = _row_lse(x, y, rate, group, ranks, backend).exp().sum()
    return total if ranks is None else ranks.total(total)


def _row_lse(
    x: Tensor, y: Tensor, rate: float, group: Tensor | None, ranks: Ranks | None,
    backend: str | None,
) -> Tensor:  # fmt: skip
    """log Σ_j exp(−rate·‖x_i − y_j‖²), without pairs of one group."""
    # −r·‖x − y‖² = 2r·⟨x, y⟩ − r·‖x‖² − r·‖y‖², all three of the same rounded features.
    is_symmetric, x = y is x, as_multiplied(x)
    y = x if is_symmetric else as_multiplied(y)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    row_bias = -rate * x.to(wide).square().sum(1)
    col_bias = row_bias if is_symmetric else -rate * y.to(wide).square().sum(1)
    return softmax_similarity(
        x, y, 2 * rate, row_bias=row_bias, col_bias=col_bias, row_group=group, col_group=group,
        columns=False, process_group=ranks, backend=backend, **_no_positives(x, y, ranks),
    ).row_lse  # fmt: skip


def _no_positives(x: Tensor, y: Tensor, ranks: Ranks | None) -> dict[str, Any]:
    """No target; over ranks no labels, with which half of the matrix is enough where y is x."""
    none = torch.full((x.shape[0],), -1, device=x.device)
    if ranks is None:
        return {"target": none}
    return {"row_label": none, "col_label": none if y is x else none.new_full((len(y),), -1)}


def _checked_bandwidths(bandwidths: Sequence[float]) -> list[float]:
    found = check.as_sequence("bandwidths", bandwidths)
    if not found:
        raise ValueError("bandwidths must have at least 1 number, got none")
    return [check.check_positive(f"bandwidths[{i}]", each) for i, each in enumerate(found)]
