"""The streaming primitive under every softmax objective."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends import selected
from mmcore.functional import arguments as check


class SoftmaxStatistics(NamedTuple):
    """What `softmax_similarity` returns, all float64.

    Example:
        >>> import torch, mmcore
        >>> x = mmcore.functional.l2_normalize(torch.randn(4, 8))
        >>> statistics = mmcore.functional.softmax_similarity(x, x)
        >>> [tuple(part.shape) for part in statistics]
        [(4,), (4,), (4,), (4,)]
    """

    row_lse: Tensor  # (N,)
    col_lse: Tensor  # (M,)
    row_pos: Tensor  # (N,)
    col_pos: Tensor  # (M,)


def softmax_similarity(
    x: Tensor,
    y: Tensor,
    scale: float | Tensor = 1.0,
    bias: float | Tensor | None = None,
    *,
    target: Tensor | None = None,
    backend: str | None = None,
) -> SoftmaxStatistics:
    """Log-sum-exp of every row and column of the similarity matrix, and the logits of positives.

    Equivalent, without ever storing the (N, M) logits, to ::

        logits = scale * x @ y.T + bias
        row_lse, col_lse = logits.logsumexp(1), logits.logsumexp(0)
        row_pos = logits[torch.arange(N), target]                  # 0 where target is -1
        col_pos = torch.zeros(M).index_add(0, target, row_pos)

    Args:
        x: (N, D), any floating-point dtype, normalised or not.
        y: (M, D), in the dtype of `x`.
        scale: a number or a one-element tensor: the inverse temperature.
        bias: a number, a one-element tensor or None, added to every logit.
        target: (N,) int64, the column of each row's positive, -1 for none; default the diagonal.
        backend: see `mmcore.backend`.

    Returns:
        `SoftmaxStatistics`, float64 whatever the inputs' dtype: objectives are differences of
        these numbers, and float32 would leave an error of 4e-6 in each at scale 100. All four are
        differentiable with respect to `x`, `y`, `scale` and `bias`.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together; `x` or `y` has no
            rows; `scale` or `bias` is no scalar, or a number that is not finite; a target is out of
            range.

    Memory:
        O(N + M), and per thread 1536 packed rows of `x` and 192 of `y`. Under autocast, float32
        features are rounded to autocast's dtype first, as a matrix product would round them.

    NaN or inf in the features or in a tensor `scale` gives NaN.

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
    check.check_matrix("x", x)
    check.check_matrix("y", y)
    check.check_rows("x", x)
    check.check_rows("y", y)
    check.check_columns("y", y, x.shape[1])
    check.check_matches("y", y, x)
    scale = check.as_scalar("scale", scale, x)
    bias = None if bias is None else check.as_scalar("bias", bias, x)
    target = check.as_target(target, x.shape[0], y.shape[0], x)
    dtype = check.autocast_dtype(x)
    if dtype is not None:
        x, y = x.to(dtype), y.to(dtype)
    return SoftmaxStatistics(
        *torch.ops.mmcore.softmax_similarity(x, y, scale, bias, target, selected(backend))
    )
