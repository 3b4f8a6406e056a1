"""hardest_negatives: the search in plain torch, and the products with what any backend found.

A slab of rows at a time: O(N·D) operations, and nothing but the gradients of that size in memory.
The formulas: ops/hardest_negatives.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import Gradients, SimilarityInputs, arithmetic_dtype
from mmcore.backends.reference.pairs import masks
from mmcore.backends.reference.slabs import slabs, widened

ROWS_OF_A_SLAB = 4096


class NegativesInputs(NamedTuple):
    """Rows and columns whose hardest negatives are searched; the diagonal is positive."""

    x: Tensor  # (N, D)
    y: Tensor  # (N, D)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (N,)
    precision: str = "highest"
    target: Tensor | None = None  # (N,) the positive's column, for a search alone

    def matrix(self) -> SimilarityInputs:
        """The similarity matrix, its scale 1."""
        rows, device = self.x.shape[0], self.x.device
        target = torch.arange(rows, device=device) if self.target is None else self.target
        return SimilarityInputs(
            x=self.x, y=self.y, scale=torch.ones((), dtype=torch.float64, device=device),
            bias=None, row_bias=None, col_bias=None, target=target, row_label=None,
            col_label=None, row_group=self.row_group, col_group=self.col_group,
            denominator="negatives", precision=self.precision,
        )  # fmt: skip


class HardestNegatives(NamedTuple):
    """Products float64, indices int64, −1 where there is no negative; each (N,)."""

    positive: Tensor
    row_hardest: Tensor
    col_hardest: Tensor
    row_index: Tensor
    col_index: Tensor


class NegativesUpstream(NamedTuple):
    """Gradients of the products."""

    positive: Tensor
    row_hardest: Tensor
    col_hardest: Tensor


class NegativesWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool


def forward(inputs: NegativesInputs) -> HardestNegatives:
    return with_products(inputs, *search(inputs))


def search(inputs: NegativesInputs) -> tuple[Tensor, Tensor]:
    """Where the rows' and the columns' largest products are."""
    matrix = widened(inputs.matrix())
    x, y = matrix.x, matrix.keys
    row_index = x.new_empty(x.shape[0], dtype=torch.int64)
    col_largest = y.new_full((y.shape[0],), -torch.inf)
    col_index = torch.full_like(col_largest, -1, dtype=torch.int64)
    for rows in slabs(x.shape[0], y.shape[0], x.device):
        products = x[rows] @ y.T
        keep = masks(matrix, rows).counted(matrix.denominator)
        products = products.masked_fill(~keep | products.isnan(), -torch.inf)
        largest, index = products.max(1)
        row_index[rows] = torch.where(largest == -torch.inf, -1, index)
        largest, index = products.max(0)
        is_larger = largest > col_largest  # of equal ones the first stays
        col_largest = torch.where(is_larger, largest, col_largest)
        col_index = torch.where(is_larger, index + rows.start, col_index)
    return row_index, col_index


def with_products(inputs: NegativesInputs, rows: Tensor, columns: Tensor) -> HardestNegatives:
    """The products at indices that a backend found, which leaves out products that are NaN."""
    x, y = inputs.x, inputs.y
    has_nan = [_has_nan(z) for z in (x, y)]
    groups = [inputs.row_group, inputs.col_group]
    rows = _index_of_nan(rows, has_nan, groups)
    columns = _index_of_nan(columns, has_nan[::-1], groups[::-1])
    diagonal = torch.arange(x.shape[0], device=x.device)
    return HardestNegatives(
        _products(x, y, diagonal), _products(x, y, rows), _products(y, x, columns), rows, columns
    )


def backward(
    inputs: NegativesInputs, found: HardestNegatives, upstream: NegativesUpstream,
    wanted: NegativesWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    x, y = inputs.x, inputs.y
    dtype = arithmetic_dtype(x.dtype)
    grad_x, grad_y = (z.new_zeros(z.shape, dtype=dtype) for z in (x, y))
    diagonal = torch.arange(x.shape[0], device=x.device)
    for own, other, index, gradient, grad_own, grad_other in (
        (x, y, diagonal, upstream.positive, grad_x, grad_y),
        (x, y, found.row_index, upstream.row_hardest, grad_x, grad_y),
        (y, x, found.col_index, upstream.col_hardest, grad_y, grad_x),
    ):
        weight = torch.where(index < 0, 0.0, gradient).to(dtype)[:, None]
        # A row without a negative adds 0 to its positive, which is NaN where the row is.
        partner = torch.where(index < 0, diagonal, index)
        for slab in _slabs(own):
            at = partner[slab]
            grad_own[slab] += weight[slab] * other[at].to(dtype)
            _add_at(grad_other, at, weight[slab] * own[slab].to(dtype))
    return grad_x, grad_y


def _products(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """⟨x_i, y_index(i)⟩, float64; −∞ where the index is −1."""
    out = torch.empty(x.shape[0], dtype=torch.float64, device=x.device)
    for slab in _slabs(x):
        out[slab] = (x[slab].double() * y[index[slab].clamp(min=0)].double()).sum(1)
    return out.masked_fill_(index < 0, -torch.inf)


def _index_of_nan(
    index: Tensor, has_nan: Sequence[Tensor], groups: Sequence[Tensor | None]
) -> Tensor:
    """`index`, and where a negative's product is NaN that negative's, which torch.max takes too.

    Of both lists the first is the side that the index is for, the second the one it points to.
    """
    every = torch.ones_like(has_nan[1])
    of_nan, of_all = (_negative_among(candidates, groups) for candidates in (has_nan[1], every))
    found = torch.where(has_nan[0], of_all, of_nan)
    return torch.where(found < 0, index, found)


def _negative_among(candidates: Tensor, groups: Sequence[Tensor | None]) -> Tensor:
    """For each row one of the candidates that is a negative of it; −1 where none is.

    Two candidates are enough: of the first one and of its group, the second is a negative.
    """
    itself = torch.arange(len(candidates), device=candidates.device)
    own, other = groups

    def is_negative(candidate: Tensor, of: Tensor | None) -> Tensor:
        differs = itself != candidate
        if of is None or other is None:
            return differs
        return differs & ((of != other[candidate]) | (of == -1))

    first = candidates.int().argmax(0, keepdim=True)
    others = candidates & is_negative(first, other)
    second = others.int().argmax(0, keepdim=True)
    found = torch.where(others.any() & is_negative(second, own), second, -1)
    return torch.where(candidates.any() & is_negative(first, own), first, found)


def _has_nan(x: Tensor) -> Tensor:
    """Which rows have NaN among their numbers."""
    return torch.cat([x[slab].isnan().any(1) for slab in _slabs(x)])


def _add_at(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """total[index] += rows, where an index may occur several times, added in one order."""
    if total.is_cuda:  # index_put_ sorts its indices there; index_add_ adds in any order
        total.index_put_((index,), rows, accumulate=True)
    else:
        total.index_add_(0, index, rows)


def _slabs(x: Tensor) -> Iterator[slice]:
    size = x.shape[0]
    return (slice(i, min(i + ROWS_OF_A_SLAB, size)) for i in range(0, size, ROWS_OF_A_SLAB))
