"""Where the hardest negatives are, of rows and columns that several ranks hold; without a gradient.

    row_index_i = argmax_{j counted} ⟨x_i, y_j⟩       col_index_j = argmax_{i counted} ⟨x_i, y_j⟩

Indices number the rows of all ranks; −1 where nothing is counted. Counted is every pair of
different groups but row i and column target_i. A slab of columns at a time is searched by the
kernels of one process; what was found is compared by its product in float64. Products that are NaN
are left out. The best rows of a column go to the rank that holds the column.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.reference.hardest_negatives import NegativesInputs
from mmcore.ops.define import define
from mmcore.ops.flops import no_flops
from mmcore.ops.precision import as_multiplied, precision_of
from mmcore.ops.sharded.slabs import Shards, slabs

STEP = "hardest_negatives, search"


def _run(
    backend: str, x: Tensor, y: Tensor, row_group: Tensor | None, col_group: Tensor | None,
    precision: str, target: Tensor, agreed: Tensor, group: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    shards = Shards.of(agreed, group)
    columns, rank = sum(shards.columns), shards.group.rank
    col_groups = shards.gathered(col_group, STEP)
    search = backends.implementation(backend, "hardest_negatives").search
    first_row = sum(shards.rows[:rank])
    best, best_of_columns = _none(x, x.shape[0]), _none(x, columns)
    for slab in slabs(y, shards, STEP):
        if 0 in (x.shape[0], len(slab.rows)):
            continue
        block = NegativesInputs(
            x, slab.rows, row_group, slab.of(col_groups), precision, slab.target(target, columns)
        )
        row_index, col_index = search(block)
        numbers = slab.columns
        if numbers is None:
            numbers = torch.arange(columns, device=x.device)
        found = _with_products(x, slab.rows, row_index, numbers)
        best = _larger(best, found)
        rows = torch.arange(x.shape[0], device=x.device) + first_row
        best_of_columns[numbers] = _with_products(slab.rows, x, col_index, rows)
    own = _none(x, shards.own_columns)
    for part in shards.to_owners(best_of_columns, STEP):
        own = _larger(own, part)
    return best[:, 1].long(), own[:, 1].long()


def _none(x: Tensor, count: int) -> Tensor:
    """(count, 2): a product and the number of the row that it is with."""
    return torch.tensor([-torch.inf, -1.0], dtype=torch.float64, device=x.device).repeat(count, 1)


def _with_products(x: Tensor, other: Tensor, index: Tensor, numbers: Tensor) -> Tensor:
    at = index.clamp(min=0)
    products = (x.double() * other[at].double()).sum(1)
    found = torch.stack([products, numbers[at].double()], 1)
    return torch.where((index < 0)[:, None], _none(x, 1), found)


def _larger(one: Tensor, other: Tensor) -> Tensor:
    """Row by row; of equal ones the first."""
    return torch.where((other[:, 0] > one[:, 0])[:, None], other, one)


define(
    "sharded_hardest_negatives",
    "(Tensor x, Tensor y, Tensor? row_group, Tensor? col_group, str precision, Tensor target, "
    "Tensor agreed, str group, str backend) -> (Tensor row_index, Tensor col_index)",
    fake=lambda x, y, *_: tuple(z.new_empty(z.shape[0], dtype=torch.int64) for z in (x, y)),
    run=_run, flops=no_flops,
)  # fmt: skip


def call(
    inputs: NegativesInputs, agreed: Tensor, group: str, *, backend: str | None
) -> tuple[Tensor, Tensor]:
    """The indices; the inputs are checked, and agreed on."""
    x, y = (as_multiplied(side.detach()) for side in inputs[:2])
    found: tuple[Tensor, Tensor] = torch.ops.mmcore.sharded_hardest_negatives(
        x, y, inputs.row_group, inputs.col_group, precision_of(x), inputs.target, agreed, group,
        backends.selected(backend),
    )  # fmt: skip
    return found
