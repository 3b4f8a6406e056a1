"""The logits of hardest negatives and their gradients, once a backend has found where they are.

A slab of rows at a time: O(N·D) operations, and nothing but the gradients of that size in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import as_inputs

ROWS_OF_A_SLAB = 4096
Tensors = tuple[Tensor, ...]


class SearchedNegatives(NamedTuple):
    """`search` takes the arguments of softmax_similarity and returns indices of both sides."""

    search: Callable[..., tuple[Tensor, Tensor]]

    def forward(
        self, x: Tensor, y: Tensor, row_group: Tensor | None, col_group: Tensor | None,
        multiplies_bfloat16: bool,
    ) -> Tensors:  # fmt: skip
        diagonal = torch.arange(x.shape[0], device=x.device)
        one = torch.ones((), dtype=torch.float64, device=x.device)
        pairs: tuple[Any, ...] = (diagonal, None, None, row_group, col_group)
        rows, columns = self.search(
            x, y, one, None, None, None, *pairs, "negatives", True, multiplies_bfloat16
        )
        return (
            products(x, y, diagonal),
            products(x, y, rows),
            products(y, x, columns),
            rows,
            columns,
        )


def products(x: Tensor, y: Tensor, index: Tensor) -> Tensor:
    """⟨x_i, y_index(i)⟩, float64; −∞ where the index is −1."""
    out = torch.empty(x.shape[0], dtype=torch.float64, device=x.device)
    for slab in _slabs(x):
        out[slab] = (x[slab].double() * y[index[slab].clamp(min=0)].double()).sum(1)
    return out.masked_fill_(index < 0, -torch.inf)


def backward(
    x: Tensor, y: Tensor, rows: Tensor, columns: Tensor, grad_positive: Tensor, grad_row: Tensor,
    grad_col: Tensor, wanted: list[bool],
) -> Tensors:  # fmt: skip
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    grad_x, grad_y = (z.new_zeros(z.shape, dtype=wide) for z in (x, y))
    diagonal = torch.arange(x.shape[0], device=x.device)
    for own, other, index, gradient, of_own, of_other in (
        (x, y, diagonal, grad_positive, grad_x, grad_y),
        (x, y, rows, grad_row, grad_x, grad_y),
        (y, x, columns, grad_col, grad_y, grad_x),
    ):
        weight = torch.where(index < 0, 0.0, gradient).to(wide)[:, None]
        for slab in _slabs(own):
            at = index[slab].clamp(min=0)
            of_own[slab] += weight[slab] * other[at].to(wide)
            _add_at(of_other, at, weight[slab] * own[slab].to(wide))
    return as_inputs((grad_x, grad_y), (x, y), wanted)


def _add_at(total: Tensor, index: Tensor, rows: Tensor) -> None:
    """total[index] += rows, where an index may occur several times, added in one order."""
    if total.is_cuda:  # index_put_ sorts its indices there; index_add_ adds in any order
        total.index_put_((index,), rows, accumulate=True)
    else:
        total.index_add_(0, index, rows)


def _slabs(x: Tensor) -> Iterator[slice]:
    size = x.shape[0]
    return (slice(i, min(i + ROWS_OF_A_SLAB, size)) for i in range(0, size, ROWS_OF_A_SLAB))
