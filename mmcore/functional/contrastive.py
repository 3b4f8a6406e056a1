"""CLIP: each row of two sides against all rows of the other."""

from __future__ import annotations

from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_products, weighted_mean
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import clip as clip_op

DIRECTIONS = ("both", "rows", "columns")


@scale_not_temperature
@tells_ranks
def clip_loss(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor,
    bias: float | Tensor | None = None,
    *,
    label_smoothing: float = 0.0,
    weight: Tensor | None = None,
    group: Tensor | None = None,
    direction: str = "both",
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
    backend: str | None = None,
) -> Tensor:
    """Symmetric contrastive loss of CLIP: row i of `x` and row i of `y` belong together.

    Equivalent, without ever storing the (N, N) logits, to ::

        logits = scale * x @ y.T + bias
        target = torch.arange(N)
        (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2

    Args:
        x: (N, D), any floating-point dtype; rows of unit length, as `l2_normalize` or `project`
            leave them.
        y: (N, D), in the dtype of `x`.
        scale: a number or a one-element tensor, at least 0: the inverse temperature, not its
            logarithm.
        bias: a number, a one-element tensor or None. It cancels: the loss does not depend on it.
        label_smoothing: in [0, 1), as in ``F.cross_entropy``: how much of each target is spread
            evenly over all columns.
        weight: (N,), none below 0, in the dtype of `x` or float32: how much each pair counts. The
            loss is Σ wᵢ·lossᵢ / Σ wᵢ.
        group: (N,) integers. Pairs of equal groups are no negatives of each other, such as images
            of the same caption; -1 is equal to nothing. Every row keeps its own positive.
        direction: ``"both"``, or the cross-entropy of the ``"rows"`` or of the ``"columns"`` alone.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs), for 16-bit inputs too.

    Raises:
        TypeError, ValueError: as `softmax_similarity`, or `x` and `y` differ in their rows, an
            option is out of its range, or `label_smoothing` is asked for together with `group`.
            On a GPU, or under torch.compile, weights are not looked at: all 0 give NaN, and those
            below 0 count as they are.

    Memory:
        As `softmax_similarity`: O(N), against several copies of N² in plain PyTorch.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        https://arxiv.org/abs/2103.00020

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8)).requires_grad_()
        >>> y = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> loss = mmcore.functional.clip_loss(x, y, scale=100.0)
        >>> loss.backward()
        >>> x.grad.shape
        torch.Size([4, 8])
    """
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("clip_loss", process_group)
    x, y = operands.multiplied(x, y)
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    group, label_smoothing = _checked_options(x, scale, direction, label_smoothing, group)
    options = (bias, weight, group, label_smoothing or None, ranks)
    is_plain = direction == "both" and all(each is None for each in options)
    if is_plain and clip_op.serves(x, y, backend):
        return clip_op.call(x, y, check.as_scalar("scale", scale, x), backend=backend)
    if direction == "columns":
        x, y = y, x
    weight = check.check_weight("weight", weight, x, may_be_zero=ranks is not None)
    statistics = softmax_similarity(
        x, y, scale, bias, row_group=group, col_group=group, columns=direction == "both",
        process_group=ranks, backend=backend,
    )  # fmt: skip
    both = direction == "both"
    loss = _cross_entropy(statistics, both, x, y, scale, bias, label_smoothing, weight, ranks)
    return as_loss(loss, x)


def _cross_entropy(
    statistics: SoftmaxStatistics, both: bool, x: Tensor, y: Tensor, scale: float | Tensor,
    bias: float | Tensor | None, label_smoothing: float, weight: Tensor | None,
    ranks: Ranks | None,
) -> Tensor:  # fmt: skip
    """The mean over rows, or over rows and columns."""
    row_lse, col_lse, row_pos, col_pos = statistics
    if both and label_smoothing == 0:
        # The diagonal is the positives of rows and of columns.
        return weighted_mean((row_lse + col_lse) / 2 - row_pos, weight, ranks)
    row_loss = row_lse - _smoothed(row_pos, x, y, scale, bias, label_smoothing, ranks)
    if not both:
        return weighted_mean(row_loss, weight, ranks)
    col_loss = col_lse - _smoothed(col_pos, y, x, scale, bias, label_smoothing, ranks)
    return (weighted_mean(row_loss, weight, ranks) + weighted_mean(col_loss, weight, ranks)) / 2


def _checked_options(
    x: Tensor, scale: float | Tensor, direction: str, label_smoothing: float, group: Tensor | None
) -> tuple[Tensor | None, float]:
    """The group and the label smoothing."""
    if group is not None:
        group = check.check_indices("group", group, x.shape[0], "x", x)
    check.check_scale("scale", scale)
    check.check_choice("direction", direction, DIRECTIONS)
    label_smoothing = check.check_fraction("label_smoothing", label_smoothing)
    if label_smoothing and group is not None:
        raise ValueError("label_smoothing must be 0 where group is given: it spreads over all")
    return group, label_smoothing


def _smoothed(
    positive: Tensor, x: Tensor, y: Tensor, scale: float | Tensor, bias: float | Tensor | None,
    label_smoothing: float, ranks: Ranks | None,
) -> Tensor:  # fmt: skip
    """(1 − ε)·pos + ε·mean_j s_ij."""
    if not label_smoothing:
        return positive
    mean = mean_products(x, y, ranks) * check.as_scalar("scale", scale, x)
    if bias is not None:
        mean = mean + check.as_scalar("bias", bias, x)
    return (1 - label_smoothing) * positive + label_smoothing * mean.reshape(positive.shape)
