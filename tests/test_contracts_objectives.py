"""What torch expects of the ops that objectives have for themselves: schemas, fakes, autograd."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from test_contracts import CHECKS, layouts
from torch import Tensor

pytestmark = pytest.mark.op

every_layout = pytest.mark.parametrize("layout", range(3))
SCALE = torch.tensor(5.0)


def two_sides(layout: int) -> tuple[Tensor, Tensor]:
    """(10, 6) each, of one layout."""
    return layouts()[layout], layouts()[layout]


def check(name: str, inputs: Sequence[Any], machine: str, count: int, wanted: int) -> None:
    """The op, and its backward, which takes gradients of the first `count` results."""
    op, of_backward = (
        getattr(torch.ops.mmcore, each).default for each in (name, f"{name}_backward")
    )
    torch.library.opcheck(op, (*inputs, machine), test_utils=CHECKS)
    outputs = op(*inputs, machine)
    upstream = [torch.randn_like(each) for each in outputs[:count]]
    # The last input of prefixes says how much a forward may keep.
    of_search, of_others = (*inputs[:2], *outputs[3:]), (*inputs[:-1], *outputs)
    kept = of_search if name == "hardest_negatives" else of_others
    torch.library.opcheck(
        of_backward, (*kept, *upstream, [True] * wanted, machine), test_utils=CHECKS
    )


@every_layout
def test_opcheck_prefix_similarity(machine: str, layout: int) -> None:
    x, y = two_sides(layout)
    target, group = torch.arange(10), torch.arange(10) // 2
    inputs = (x, y, SCALE, [2, 6], 1e-12, target, group, group, False, 0)
    check("prefix_similarity", inputs, machine, 3, 3)


@every_layout
def test_opcheck_hardest_negatives(machine: str, layout: int) -> None:
    group = torch.arange(10) // 2
    check("hardest_negatives", (*two_sides(layout), group, group, False), machine, 3, 2)


@every_layout
@pytest.mark.parametrize("scale", [5.0, 1e4])
def test_opcheck_distillation(machine: str, layout: int, scale: float) -> None:
    x, y = two_sides(layout)
    teacher = (torch.randn(10, 4), torch.randn(10, 4), SCALE)
    torch.manual_seed(1)
    op = torch.ops.mmcore.distillation
    inputs = (x, y, torch.tensor(scale), *teacher, False)
    torch.library.opcheck(op.default, (*inputs, machine), test_utils=CHECKS)
    outputs = op(*inputs, machine)
    upstream = [torch.randn_like(each) for each in outputs[:5]]
    torch.library.opcheck(
        torch.ops.mmcore.distillation_backward.default,
        (*inputs, *outputs, *upstream, [True] * 3, machine),
        test_utils=CHECKS,
    )


def opcheck(op: torch._ops.OpOverload, *inputs: Any) -> None:
    torch.library.opcheck(op, inputs, test_utils=CHECKS)


@every_layout
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_opcheck_product_similarity(machine: str, layout: int, is_shuffled: bool) -> None:
    ops, features = torch.ops.mmcore, layouts_of_three(layout)
    order = torch.stack([torch.randperm(10) for _ in features]) if is_shuffled else None
    settings = (SCALE, order, torch.float32, False)
    opcheck(ops.product_similarity.default, features, *settings, 0, machine)
    inputs = (features, *settings)
    row_lse, _, kept = ops.product_similarity(*inputs, 0, machine)
    upstream = torch.randn(2, 3, 10, dtype=torch.float64)
    opcheck(
        ops.product_similarity_backward.default,
        *inputs, row_lse, kept, *upstream, [True, True, True, False], machine,
    )  # fmt: skip


@every_layout
def test_opcheck_gram_volume(machine: str, layout: int) -> None:
    ops, (x, *others) = torch.ops.mmcore, layouts_of_three(layout)
    scale = SCALE.double()
    opcheck(ops.gram_volume.default, x, others, scale, machine)
    inputs = (x, others, scale)
    row_lse, col_lse, *_ = ops.gram_volume(*inputs, machine)
    upstream = (*torch.randn(3, 10, dtype=torch.float64), scale)
    opcheck(
        ops.gram_volume_backward.default,
        *inputs, row_lse, col_lse, *upstream, [True, True, False], machine,
    )  # fmt: skip


def layouts_of_three(layout: int) -> list[Tensor]:
    """(10, 6) each, of one layout."""
    return [layouts()[layout] for _ in range(3)]
