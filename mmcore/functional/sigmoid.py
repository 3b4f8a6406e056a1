"""Sigmoid objectives: SigLIP, with one positive or several."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, ratio
from mmcore.functional.similarity import as_scalars, sigmoid_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import siglip as siglip_op
from mmcore.ops.siglip import SiglipInputs


@scale_not_temperature
@tells_ranks
def siglip_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor | None = None,
    *,
    target: Tensor | None = None,
    row_label: Tensor | None = None,
    col_label: Tensor | None = None,
    row_group: Tensor | None = None,
    col_group: Tensor | None = None,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Sigmoid loss of SigLIP: every pair by itself is told positive or negative.

    Equivalent, without ever storing the (N, M) logits, to ::

        logits = scale * x @ y.T + bias
        sign = torch.where(positive, 1, -1)
        -(F.logsigmoid(sign * logits) * counted).sum() / N

    where `positive` is the diagonal unless `target` or labels say otherwise, and pairs of equal
    groups are left out (docs/pairs.md).

    Args:
        x: (N, D), any floating-point dtype; rows of unit length.
        y: (M, D), in the dtype of `x`.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        bias: a number, a one-element tensor or None, added to every logit.
        target, row_label, col_label, row_group, col_group: as in `sigmoid_similarity`.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `sigmoid_similarity`.

    Memory:
        As `sigmoid_similarity`.

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023,
        https://arxiv.org/abs/2303.15343

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> y = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> mmcore.functional.siglip_loss(x, y, scale=10.0, bias=-10.0).dtype
        torch.float32
    """
    ranks = as_ranks(process_group, gradients, exchange)
    if target is None:
        warn_of_local_batch("siglip_loss", process_group)
    check.check_scale("scale", scale)
    x, y = operands.multiplied(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    options = (target, row_label, col_label, row_group, col_group, ranks)
    is_plain = x.shape == y.shape and all(each is None for each in options)
    if is_plain and siglip_op.serves(x, y, backend):
        scale, bias = as_scalars(x, scale, bias)
        return siglip_op.call(SiglipInputs(x, y, scale, bias), backend=backend)
    sums = sigmoid_similarity(
        x, y, scale, bias, target=target, row_label=row_label, col_label=col_label,
        row_group=row_group, col_group=col_group, process_group=ranks, backend=backend,
    )  # fmt: skip
    if ranks is not None:
        rows = torch.full((), x.shape[0], dtype=torch.float64, device=x.device)
        return as_loss(ratio(sums.total - sums.positive, rows, ranks), x)
    return as_loss((sums.total - sums.positive) / x.shape[0], x)
