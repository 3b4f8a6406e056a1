"""The streaming primitives under every contrastive objective."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.pairs import as_pairs, mirrored
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.shared_matrix import shared_matrix
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops import sigmoid_similarity as sigmoid_op
from mmcore.ops import softmax_similarity as softmax_op
from mmcore.ops.pairs import DENOMINATORS, POSITIVES, Pairs
from mmcore.ops.sharded import sigmoid_similarity as sharded_sigmoid_op
from mmcore.ops.sharded import softmax_similarity as sharded_softmax_op
from mmcore.ops.softmax_similarity import SimilarityInputs


class SoftmaxStatistics(NamedTuple):
    """What `softmax_similarity` returns, all float64.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> y = mmcore.functional.l2_normalize(torch.randn(6, 8))
        >>> statistics = mmcore.functional.softmax_similarity(x, y)
        >>> [tuple(part.shape) for part in statistics]
        [(4,), (6,), (4,), (6,)]
    """

    row_lse: Tensor  # (N,)
    col_lse: Tensor  # (M,)
    row_pos: Tensor  # (N,)
    col_pos: Tensor  # (M,)


class SigmoidSums(NamedTuple):
    """What `sigmoid_similarity` returns, both 0-D float64.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> total, positive = mmcore.functional.sigmoid_similarity(x, x.clone(), 10.0, -10.0)
        >>> total.shape, positive.dtype
        (torch.Size([]), torch.float64)
    """

    total: Tensor
    positive: Tensor


@scale_not_temperature
@tells_ranks
def softmax_similarity(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    *,
    target: Tensor | None = None,
    row_label: Tensor | None = None,
    col_label: Tensor | None = None,
    row_group: Tensor | None = None,
    col_group: Tensor | None = None,
    row_bias: Tensor | None = None,
    col_bias: Tensor | None = None,
    denominator: str = "all",
    positives: str = "sum",
    columns: bool = True,
    process_group: ProcessGroup = None,
    exchange: str = "auto",
    backend: str | None = None,
) -> SoftmaxStatistics:
    """Log-sum-exp of every row and column of the similarity matrix, and the logits of positives.

    Equivalent, without ever storing the (N, M) logits, to ::

        logits = scale * x @ y.T + bias + row_bias[:, None] + col_bias
        same_group = (row_group[:, None] == col_group) & (row_group[:, None] != -1)
        if target is not None:
            positive = target[:, None] == torch.arange(M)
        else:
            positive = (row_label[:, None] == col_label) & (row_label[:, None] != -1) & ~same_group
        counted = {
            "all": positive | ~same_group,
            "negatives": ~positive & ~same_group,
            "positives": positive,
        }[denominator]
        row_lse = logits.masked_fill(~counted, -inf).logsumexp(1)
        col_lse = logits.masked_fill(~counted, -inf).logsumexp(0)
        row_pos = (logits * positive).sum(1)
        col_pos = (logits * positive).sum(0)
        if positives == "log_sum_exp":
            row_pos = logits.masked_fill(~positive, -inf).logsumexp(1)
            col_pos = logits.masked_fill(~positive, -inf).logsumexp(0)

    Positives are named by `target` or by labels, and without either are the diagonal. Groups leave
    pairs out: a pair of equal groups is no negative, and no positive by label either; a target's
    pair stays. docs/pairs.md works this out on 4×4 matrices.

    Args:
        x: (N, D), any floating-point dtype, normalised or not.
        y: (M, D), in the dtype of `x`. The same tensor as `x` costs half the work.
        scale: a number or a one-element tensor: the inverse temperature.
        bias: a number, a one-element tensor or None, added to every logit.
        target: (N,) integers, the column of each row's positive, -1 for none; default the diagonal.
            This and the vectors below are int64, or of a shorter integer dtype.
        row_label, col_label: (N,) and (M,) integers: pairs of equal labels are positives; -1 is
            equal to nothing. Where `y` is `x`, `col_label` may be left out.
        row_group, col_group: (N,) and (M,) integers: pairs of equal groups are left out; -1 is
            equal to nothing. Where `y` is `x`, `col_group` may be left out.
        row_bias, col_bias: (N,) and (M,), in the dtype of `x` or float32, added to the logits of a
            row or column; -inf takes it out. Where `y` is `x`, the work is halved if both are the
            same tensor.
        denominator: what the log-sum-exps run over: ``"all"``, ``"negatives"`` or ``"positives"``.
        positives: what becomes of the logits of a row's or column's positives: ``"sum"``, or, with
            labels, ``"log_sum_exp"``: on a CPU in the same pass, but for logits so far apart that
            maxima are tracked, on a GPU in one of its own.
        columns: False where the columns' statistics are not needed: they come back empty.
        process_group: None, or whose processes hold the other rows and columns: "world", a process
            group of torch.distributed or a DeviceMesh of one dimension. Each gets the statistics of
            its own rows and columns. `target` numbers the columns of all processes then, labels and
            groups compare by value across processes. See docs/several-processes.md.
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        `SoftmaxStatistics`, float64 whatever the inputs' dtype: objectives are differences of
        these numbers, and float32 would leave an error of 4e-6 in each at scale 100. All four are
        differentiable with respect to `x`, `y`, `scale` and the biases. The log-sum-exp of nothing
        is -inf, and sends no gradient.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together; `x` or `y` has no
            rows; `scale` or `bias` is no scalar, or a number that is not finite; a target is out of
            range; a target and labels, or one side of labels or groups without the other;
            log-sum-exps of positives without labels. On a GPU a target out of range is not seen by
            the host: it gives NaN in its row.

    Memory:
        O(N + M), per thread 1536 packed rows of `x` and 192 of `y`, and what `mmcore.workspace`
        allows to be kept for the backward. On a GPU docs/gpu-tuning.md has the formulas: what is
        kept and gradients of a chunk of logits fit the workspace; a chunk has 128 rows at least.

    bfloat16 features, and float32 ones where ``torch.get_float32_matmul_precision()`` is "medium",
    are multiplied as bfloat16, with float32 sums; where it is "high", float32 ones may be split in
    two bfloat16 numbers each, or on a GPU rounded to TensorFloat-32. Under autocast float32
    features are rounded to its dtype first, as a matrix product would round them, and there `x` and
    `y` may differ in their dtypes; float64 is left as it is. Logits are float32 in any case. NaN or
    inf in the features or in a tensor `scale` gives NaN.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> y = mmcore.functional.l2_normalize(torch.randn(6, 8))
        >>> s = mmcore.functional.softmax_similarity(x, y, 10.0)
        >>> info_nce = (s.row_lse - s.row_pos).mean()
        >>> logits = 10 * x @ y.T
        >>> torch.allclose(
        ...     info_nce.float(), torch.nn.functional.cross_entropy(logits, torch.arange(4))
        ... )
        True
    """
    x, y = operands.multiplied(x, y)
    ranks = as_ranks(process_group, exchange=exchange)
    check.check_features(x, y, may_be_empty=ranks is not None)
    scale, bias = as_scalars(x, scale, bias)
    is_symmetric = y is x and col_bias is row_bias
    row_bias = check.check_parameter("row_bias", row_bias, x.shape[0], x)
    col_bias = check.check_parameter("col_bias", col_bias, y.shape[0], x)
    columns = check.check_flag("columns", columns)
    pairs = as_pairs(x, y, target, row_label, col_label, row_group, col_group, ranks is None)
    _check_sums(denominator, positives, pairs)
    keys, pairs = _mirror(y, pairs, is_symmetric)
    inputs = SimilarityInputs(
        x=x, y=keys, scale=scale, bias=bias, row_bias=row_bias,
        col_bias=None if keys is None else col_bias, target=pairs.target,
        row_label=pairs.row_label, col_label=pairs.col_label, row_group=pairs.row_group,
        col_group=pairs.col_group, denominator=denominator, has_columns=columns,
        positives=positives,
    )  # fmt: skip
    return _softmax_statistics(inputs, ranks, backend)


def _softmax_statistics(
    inputs: SimilarityInputs, ranks: Ranks | None, backend: str | None
) -> SoftmaxStatistics:
    if ranks is None:
        return SoftmaxStatistics(*softmax_op.call(inputs, backend=backend)[:4])
    inputs, agreed = shared_matrix("softmax_similarity", inputs, ranks)
    return SoftmaxStatistics(*sharded_softmax_op.call(inputs, agreed, ranks.group, backend=backend))


def _check_sums(denominator: str, positives: str, pairs: Pairs) -> None:
    check.check_choice("denominator", denominator, DENOMINATORS)
    check.check_choice("positives", positives, POSITIVES)
    if positives != "sum" and pairs.row_label is None:
        raise ValueError(f"positives must be 'sum' where there are no labels, got {positives!r}")


@scale_not_temperature
@tells_ranks
def sigmoid_similarity(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    *,
    target: Tensor | None = None,
    row_label: Tensor | None = None,
    col_label: Tensor | None = None,
    row_group: Tensor | None = None,
    col_group: Tensor | None = None,
    process_group: ProcessGroup = None,
    exchange: str = "auto",
    backend: str | None = None,
) -> SigmoidSums:
    """Sum of softplus over the similarity matrix, and sum of the logits of positives.

    Equivalent, without ever storing the (N, M) logits, to ::

        logits = scale * x @ y.T + bias
        total = F.softplus(logits)[counted].sum()
        positive = logits[positive].sum()

    where `positive` and `counted` (``denominator="all"``) are as in `softmax_similarity`. Since
    −log σ(s) = softplus(s) − s, the loss of SigLIP is ``(total - positive) / N``.

    Args:
        x: (N, D), any floating-point dtype, normalised or not.
        y: (M, D), in the dtype of `x`. The same tensor as `x` costs half the work.
        scale: a number or a one-element tensor: the inverse temperature.
        bias: a number, a one-element tensor or None, added to every logit.
        target, row_label, col_label, row_group, col_group: as in `softmax_similarity`.
        process_group, exchange: as in `softmax_similarity`; each process gets the sums over its own
            rows and all columns.
        backend: see `mmcore.backend`.

    Returns:
        `SigmoidSums`, float64, differentiable with respect to `x`, `y`, `scale` and `bias`.

    Raises:
        TypeError, ValueError: as `softmax_similarity`.

    Memory:
        O(N + M) and per thread 1536 packed rows of `x` and 192 of `y`. Where gradients are wanted
        and `mmcore.workspace` holds them, the forward forms them in the same pass and keeps them:
        4·(N + M)·D bytes, of several processes each its own rows; otherwise, or where the workspace
        of one process does not, the backward computes the matrix anew.

    Reference:
        Zhai et al., Sigmoid Loss for Language Image Pre-Training, 2023,
        https://arxiv.org/abs/2303.15343

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> y = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> s = mmcore.functional.sigmoid_similarity(x, y, 10.0, -10.0)
        >>> siglip = (s.total - s.positive) / 4
        >>> signs = 2 * torch.eye(4) - 1
        >>> expected = -torch.nn.functional.logsigmoid(signs * (10 * x @ y.T - 10)).sum() / 4
        >>> torch.allclose(siglip.float(), expected)
        True
    """
    x, y = operands.multiplied(x, y)
    ranks = as_ranks(process_group, exchange=exchange)
    check.check_features(x, y, may_be_empty=ranks is not None)
    scale, bias = as_scalars(x, scale, bias)
    pairs = as_pairs(x, y, target, row_label, col_label, row_group, col_group, ranks is None)
    keys, pairs = _mirror(y, pairs, y is x)
    inputs = SimilarityInputs(x, keys, scale, bias, None, None, **pairs._asdict())
    if ranks is not None:
        keeps = sharded_sigmoid_op.keeps(inputs)
        inputs, agreed = shared_matrix("sigmoid_similarity", inputs, ranks, keeps_gradients=keeps)
        sums = sharded_sigmoid_op.call(inputs, agreed, ranks.group, backend=backend)
    else:
        sums = sigmoid_op.call(inputs, backend=backend)
    return SigmoidSums(sums.total, sums.positive)


def as_scalars(
    x: Tensor, scale: float | Tensor, bias: float | Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Both, checked, as 0-D tensors."""
    return (
        check.as_scalar("scale", scale, x),
        None if bias is None else check.as_scalar("bias", bias, x),
    )


def _mirror(y: Tensor, pairs: Pairs, is_symmetric: bool) -> tuple[Tensor | None, Pairs]:
    """What the ops are given for y: None where the matrix is its own transpose."""
    symmetric = mirrored(pairs) if is_symmetric else None
    return (y, pairs) if symmetric is None else (None, symmetric)
