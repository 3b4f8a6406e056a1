"""What torch expects of the ops that objectives have for themselves: schemas, fakes, autograd."""

from __future__ import annotations

import pytest
import torch
from contracts import check_family, layouts, layouts_of_three

from mmcore.backends.reference.distillation import DistillationInputs, DistillationWanted
from mmcore.backends.reference.hardest_negatives import NegativesInputs, NegativesWanted
from mmcore.backends.reference.prefix_similarity import PrefixInputs, PrefixWanted
from mmcore.backends.reference.product_similarity import ProductInputs, ProductWanted
from mmcore.backends.reference.volume import VolumeInputs, VolumeWanted
from mmcore.ops import (
    distillation,
    hardest_negatives,
    prefix_similarity,
    product_similarity,
    volume,
)

pytestmark = pytest.mark.op

every_layout = pytest.mark.parametrize("layout", range(3))
SCALE = torch.tensor(5.0)


@every_layout
def test_opcheck_prefix_similarity(machine: str, layout: int) -> None:
    target, group = torch.arange(10), torch.arange(10) // 2
    inputs = PrefixInputs(
        x=layouts()[layout], y=layouts()[layout], scale=SCALE, ends=[2, 6], eps=1e-12,
        target=target, row_group=group, col_group=group,
    )  # fmt: skip
    check_family(prefix_similarity.family, inputs, PrefixWanted(True, True, True), machine)


@every_layout
def test_opcheck_hardest_negatives(machine: str, layout: int) -> None:
    group = torch.arange(10) // 2
    inputs = NegativesInputs(layouts()[layout], layouts()[layout], group, group)
    check_family(hardest_negatives.family, inputs, NegativesWanted(True, True), machine)


@every_layout
@pytest.mark.parametrize("scale", [5.0, 1e4])
def test_opcheck_distillation(machine: str, layout: int, scale: float) -> None:
    inputs = DistillationInputs(
        x=layouts()[layout], y=layouts()[layout], scale=torch.tensor(scale),
        teacher_x=torch.randn(10, 4), teacher_y=torch.randn(10, 4), teacher_scale=SCALE,
    )  # fmt: skip
    check_family(distillation.family, inputs, DistillationWanted(True, True, True), machine)


@every_layout
@pytest.mark.parametrize("is_shuffled", [False, True])
def test_opcheck_product_similarity(machine: str, layout: int, is_shuffled: bool) -> None:
    features = layouts_of_three(layout)
    order = torch.stack([torch.randperm(10) for _ in features]) if is_shuffled else None
    inputs = ProductInputs(features, SCALE, order, torch.float32)
    wanted = ProductWanted([True, True, False], True)
    check_family(product_similarity.family, inputs, wanted, machine)


@every_layout
def test_opcheck_volume(machine: str, layout: int) -> None:
    x, *others = layouts_of_three(layout)
    inputs = VolumeInputs(x, others, SCALE.double())
    check_family(volume.family, inputs, VolumeWanted(True, [True, False], True), machine)
