"""The hardest negative of every row and column: the primitive under VSE++."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.ranks import ProcessGroup, Ranks, Rows, as_ranks, tells_ranks
from mmcore.ops import hardest_negatives as negatives_op
from mmcore.ops.hardest_negatives import NegativesInputs
from mmcore.ops.sharded import hardest_negatives as sharded_negatives_op


class HardestNegatives(NamedTuple):
    """What `hardest_negatives` returns, (N,) each.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> found = mmcore.functional.hardest_negatives(x, y)
        >>> torch.allclose(found.row_hardest.float(), (x * y[found.row_index]).sum(1))
        True
    """

    positive: Tensor  # float64
    row_hardest: Tensor  # float64
    col_hardest: Tensor  # float64
    row_index: Tensor  # int64
    col_index: Tensor  # int64


@tells_ranks
def hardest_negatives(
    x: Tensor,
    y: Tensor,
    *,
    group: Tensor | None = None,
    process_group: ProcessGroup = None,
    exchange: str = "auto",
    backend: str | None = None,
) -> HardestNegatives:
    """The hardest negative of every row and every column: the largest product, and where it is.

    Equivalent, without ever storing the (N, N) products, to ::

        products = x @ y.T
        same_group = (group[:, None] == group) & (group[:, None] != -1)
        negatives = products.masked_fill(torch.eye(N, dtype=bool) | same_group, -inf)
        positive = products.diagonal()
        row_hardest, row_index = negatives.max(1)
        col_hardest, col_index = negatives.max(0)

    Args:
        x: (N, D), any floating-point dtype, normalised or not.
        y: (N, D), in the dtype of `x`; row i belongs to row i of `x`.
        group: (N,) integers. Pairs of equal groups are no negatives of each other; -1 is equal to
            nothing.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. Indices number the rows of all then,
            and products that are NaN are left out.
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        `HardestNegatives`. The products are differentiable with respect to `x` and `y`, in O(N·D):
        they depend on the rows that were found alone. Of several equal negatives it is one. NaN
        among the negatives is the largest, as for `torch.max`. Where a row or column has no
        negative the index is -1 and the product -inf, with gradient 0.

    Raises:
        TypeError, ValueError: as `softmax_similarity`, or `x` and `y` differ in their rows.

    Memory:
        O(N), slabs of 4,096 rows, and float32 sums of both gradients. One pass over the matrix, on
        a GPU two, of a quarter of the others' operations: the backward has none.

    Example:
        >>> import torch, mmcore
        >>> x, y = (mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(2))
        >>> found = mmcore.functional.hardest_negatives(x, y)
        >>> triplet = (0.2 + found.row_hardest - found.positive).relu().mean()
    """
    x, y = operands.multiplied(x, y)
    ranks = as_ranks(process_group, exchange=exchange)
    check.check_features(x, y, may_be_empty=ranks is not None)
    check.check_same_rows("y", y, x)
    if group is not None:
        group = check.check_indices("group", group, x.shape[0], "x", x)
    inputs = NegativesInputs(x=x, y=y, row_group=group, col_group=group)
    if ranks is not None:
        return _of_ranks(inputs, ranks, backend)
    return HardestNegatives(*negatives_op.call(inputs, backend=backend))


def _of_ranks(inputs: NegativesInputs, ranks: Ranks, backend: str | None) -> HardestNegatives:
    """The search over all ranks, and products with the rows that it found."""
    x, y, group = inputs.x, inputs.y, inputs.row_group
    agreed = ranks.agree(
        "hardest_negatives", {"x": x, "y": y, "group": group},
        sizes={"rows": x.shape[0], "columns": y.shape[0]},
    )  # fmt: skip
    rows, columns = (Rows(agreed[:, i], ranks) for i in range(2))
    inputs = inputs._replace(target=rows.numbers(x))
    row_index, col_index = sharded_negatives_op.call(inputs, agreed, ranks.group, backend=backend)
    return HardestNegatives(
        _products(x, y, None),
        _products(x, columns.at(y, row_index), row_index),
        _products(y, rows.at(x, col_index), col_index),
        row_index,
        col_index,
    )


def _products(one: Tensor, other: Tensor, index: Tensor | None) -> Tensor:
    """Row by row, float64; −∞ where the index is −1."""
    found = (one.double() * other.double()).sum(1)
    return found if index is None else found.masked_fill(index < 0, -torch.inf)
