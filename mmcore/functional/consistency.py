"""Consistency of two modalities' similarities: CyCLIP's regularisers."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.gram import sums_of
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss


@tells_ranks
def cyclip_loss(
    x: Tensor,
    y: Tensor,
    *,
    cross_modal_weight: float = 0.25,
    in_modal_weight: float = 0.25,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """CyCLIP's two regularisers, without the contrastive loss: add `clip_loss`.

    Equivalent, without ever storing an (N, N) matrix, to ::

        cross = (x @ y.T - y @ x.T).square().sum() / N
        within = (x @ x.T - y @ y.T).square().sum() / N
        cross_modal_weight * cross + in_modal_weight * within

    Sums over all pairs are divided by N, as in the paper and, once its logit scale has cancelled,
    in the authors' code; both weights there are 0.25.

    Args:
        x, y: (N, D), any floating-point dtype; rows of unit length; row i of both belong together.
        cross_modal_weight: at least 0: ⟨x_i, y_j⟩ is to be ⟨x_j, y_i⟩.
        in_modal_weight: at least 0: ⟨x_i, x_j⟩ is to be ⟨y_i, y_j⟩.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs). Each of the two is exact to 1e-7 of their sum:
        where one vanishes and the other does not, it is lost in that.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, or a weight is
            below 0.

    Memory:
        O(D²) and, in float32, x − y, x + y and their gradients, N·D each: 14·N·D² operations with
        the gradient, against O(N²) and 18·N²·D.

    Reference:
        Goel et al., CyCLIP: Cyclic Contrastive Language-Image Pretraining, 2022,
        https://arxiv.org/abs/2205.14459

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(16, 8)) for _ in range(2))
        >>> loss = mmcore.functional.clip_loss(x, y, 14.0) + mmcore.functional.cyclip_loss(x, y)
        >>> loss.shape
        torch.Size([])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("cyclip_loss", process_group)
    x, y = operands.promoted(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    cross_modal_weight = check.check_not_negative("cross_modal_weight", cross_modal_weight)
    in_modal_weight = check.check_not_negative("in_modal_weight", in_modal_weight)
    rows: int | Tensor = x.shape[0]
    if ranks is not None:
        rows = ranks.rows("cyclip_loss", x=x, y=y)[0].total(x.device)
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    left, right = x.to(wide), y.to(wide)
    # With a = x − y and b = x + y: XXᵀ − YYᵀ = (ABᵀ + BAᵀ)/2 and YXᵀ − XYᵀ = (ABᵀ − BAᵀ)/2. Near
    # convergence a is small, and so is all that is subtracted.
    sums = sums_of(
        left - right, left + right, False, backend, xx=True, xy=True, yy=True, ranks=ranks
    )
    difference_gram, across, sum_gram = (matrix.double() for matrix in sums[:3])
    square = (difference_gram * sum_gram).sum()
    mixed = (across * across.T).sum()
    cross, within = (square - mixed) / 2, (square + mixed) / 2
    return as_loss((cross_modal_weight * cross + in_modal_weight * within) / rows, x)
