"""The hardest negative of every row and every column, and its product.

    row_index_i = argmax_{j counted} ⟨x_i, y_j⟩       row_hardest_i = ⟨x_i, y_row_index(i)⟩
    col_index_j = argmax_{i counted} ⟨x_i, y_j⟩       col_hardest_j = ⟨x_col_index(j), y_j⟩
    positive_i = ⟨x_i, y_i⟩

Counted is every pair off the diagonal of different groups (pairs.py). Where none is, the index is
−1 and the product −∞, with gradient 0. The gradient flows to the rows that were found, O(N·D).

x, y: (N, D); indices: (N,) int64; products: (N,) float64, whatever was rounded in the search.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import cpu, selected, triton
from mmcore.backends import hardest_negatives as products
from mmcore.backends.hardest_negatives import SearchedNegatives
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.pairs import Pairs, counted
from mmcore.ops.precision import arithmetic_dtype, as_multiplied, multiplies_bfloat16
from mmcore.ops.slabs import slabs

# Reference


def reference_search(x: Tensor, y: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    pairs, denominator = Pairs(*arguments[4:9]), arguments[9]
    x, y = (z.to(arithmetic_dtype(x.dtype)) for z in (x, y))
    row_index = x.new_empty(x.shape[0], dtype=torch.int64)
    col_largest = y.new_full((y.shape[0],), -torch.inf)
    col_index = torch.full_like(col_largest, -1, dtype=torch.int64)
    for rows in slabs(x.shape[0], y.shape[0], x.device):
        matrix = x[rows] @ y.T
        keep = counted(denominator, *pairs.of_rows(rows).masks(matrix))
        matrix = matrix.masked_fill(~keep | matrix.isnan(), -torch.inf)
        largest, index = matrix.max(1)
        row_index[rows] = torch.where(largest == -torch.inf, -1, index)
        largest, index = matrix.max(0)
        is_larger = largest > col_largest  # of equal ones the first stays
        col_largest = torch.where(is_larger, largest, col_largest)
        col_index = torch.where(is_larger, index + rows.start, col_index)
    return row_index, col_index


# Contract

_INPUTS = "Tensor x, Tensor y, Tensor? row_group, Tensor? col_group, bool multiplies_bfloat16"
SCHEMA = (
    f"({_INPUTS}, str backend) -> (Tensor positive, Tensor row_hardest, Tensor col_hardest, "
    "Tensor row_index, Tensor col_index)"
)
BACKWARD_SCHEMA = (
    "(Tensor x, Tensor y, Tensor row_index, Tensor col_index, Tensor grad_positive, "
    "Tensor grad_row_hardest, Tensor grad_col_hardest, bool[] wanted, str backend) "
    "-> (Tensor grad_x, Tensor grad_y)"
)


def fake_forward(x: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    dtypes = (torch.float64, torch.float64, torch.float64, torch.int64, torch.int64)
    return tuple(x.new_empty(x.shape[0], dtype=dtype) for dtype in dtypes)


def fake_backward(x: Tensor, y: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    return fake_gradients((x, y), arguments[-2])


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.mark_non_differentiable(*output[3:])
    ctx.save_for_backward(*inputs[:2], *output[3:])
    ctx.backend = inputs[-1]


def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:2])
    gradients: Sequence[Tensor] = _backward_op(
        *ctx.saved_tensors, *upstream[:3], wanted, ctx.backend
    )
    of_x, of_y = only_wanted(gradients, wanted)
    return of_x, of_y, None, None, None, None


# Backends

define(
    "hardest_negatives",
    SCHEMA,
    fake=fake_forward,
    implementations={
        "reference": SearchedNegatives(reference_search).forward,
        "cpu": SearchedNegatives(cpu.hardest_negatives).forward,
        "triton": SearchedNegatives(triton.hardest_negatives).forward,
    },
)
define(
    "hardest_negatives_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations=dict.fromkeys(("reference", "cpu", "triton"), products.backward),
)

_backward_op = once_differentiable(torch.ops.mmcore.hardest_negatives_backward.default)
_call = differentiable(torch.ops.mmcore.hardest_negatives.default, save=save, backward=backward)


def call(
    x: Tensor, y: Tensor, group: Tensor | None, *, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """positive, row_hardest, col_hardest, row_index and col_index; the products differentiable."""
    queries = as_multiplied(x)
    positive, row_hardest, col_hardest, row_index, col_index = _call(
        queries, as_multiplied(y), group, group, multiplies_bfloat16(queries), selected(backend)
    )
    return positive, row_hardest, col_hardest, row_index, col_index
