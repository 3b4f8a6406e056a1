"""FLOPs that torch.utils.flop_counter reports: those of the same formula in eager PyTorch."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from objective_cases import Call, every_case
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, flop_registry

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import Case

pytestmark = pytest.mark.objective

Function = Callable[..., Tensor]
# Their plain formula makes other products: it calls the matrix once where mmcore calls an op for
# each of two denominators, measures distances without a product, decomposes, repeats, or sends the
# gradient of a maximum through the whole matrix.
OTHER_PRODUCTS = {
    "cca_loss", "cyclip_loss", "hard_negative_loss", "mmd_loss", "multiple_negatives_ranking_loss",
    "uniformity_loss", "vse_loss", "unicl_loss",
}  # fmt: skip


def flops(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> tuple[int, int]:
    """Of a forward and of the backward of its sum."""
    with FlopCounterMode(display=False) as counter:
        total = sum(result.sum() for result in function(*tensors))
        forward = counter.get_total_flops()
        total.backward()
    return forward, counter.get_total_flops() - forward


@every_case()
def test_flops_of_an_objective(case: Case) -> None:
    """Catches an op that reports nothing, its backward's FLOPs for its own, or one modality's."""
    call = Call.of(case, 6, 8)
    found, expected = (flops(function, call.tensors()) for function in (call.function, call.plain))
    if case.row.name in OTHER_PRODUCTS:
        assert found[0] > 0
    elif case.options(8).get("negatives") == "queue":
        # The formula takes the logits of own keys from a whole matrix, as large as the queue's.
        assert [2 * number for number in found] == list(expected)
    else:
        assert found == expected


def eager_project(x: Tensor, weight: Tensor) -> Tensor:
    return F.linear(F.layer_norm(x, (5,)), weight)


# Functions of x and y, (4, 5) and (7, 5), with the eager formula that has the same products.
PAIRS: dict[str, tuple[Function, Function]] = {
    "project": (lambda x, y: functional.project(x, y, norm="layer"), eager_project),
    "l2_normalize": (lambda x, y: functional.l2_normalize(x), lambda x, y: F.normalize(x)),
    "softmax_similarity": (
        lambda x, y: functional.softmax_similarity(x, y, 2.0).row_lse,
        lambda x, y: (2 * x @ y.T).logsumexp(1),
    ),
    "softmax_similarity of x": (
        lambda x, y: functional.softmax_similarity(x, x, 2.0).row_lse,
        lambda x, y: (2 * x @ x.T).logsumexp(1),
    ),
    "sigmoid_similarity": (
        lambda x, y: functional.sigmoid_similarity(x, y, 2.0).total,
        lambda x, y: F.softplus(2 * x @ y.T),
    ),
    "gram": (lambda x, y: functional.gram(x), lambda x, y: x.T @ x),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("wanted", [(True, True), (True, False), (False, True)])
def test_flops_are_those_of_the_gradients_that_are_wanted(
    name: str, wanted: tuple[bool, bool]
) -> None:
    """Catches FLOPs of rows for those of columns, and of gradients that nobody asked for."""
    ours, eager = PAIRS[name]
    x, y = torch.randn(4, 5), torch.randn(7, 5)
    found = []
    for function in (ours, eager):
        sides = [
            side.clone().requires_grad_(flag) for side, flag in zip((x, y), wanted, strict=True)
        ]
        # So that there is a backward, whichever side is read.
        found.append(flops(lambda x, y, f=function: [f(x, y), 0 * (x.sum() + y.sum())], sides))
    assert found[0] == found[1]


def test_flops_of_a_metric() -> None:
    """Catches a metric whose products the counter does not see: three of (6, 9) by (9, 6)."""
    with FlopCounterMode(display=False) as counter:
        mmcore.metrics.linear_cka(torch.randn(9, 6), torch.randn(9, 6))
    assert counter.get_total_flops() == 3 * 2 * 9 * 6 * 6


def test_every_op_has_a_formula() -> None:
    """Catches an op that is registered apart from the others."""
    names = [name for name in torch._C._dispatch_get_all_op_names() if name.startswith("mmcore::")]
    packets = [getattr(torch.ops.mmcore, name.removeprefix("mmcore::")) for name in names]
    assert len(packets) > 20
    assert not [str(packet) for packet in packets if packet not in flop_registry]


@pytest.mark.parametrize("is_sought", [True, False])
@pytest.mark.parametrize("is_first", [True, False])
def test_flops_whichever_is_imported_first(is_first: bool, is_sought: bool) -> None:
    """Catches a counter that is imported or looked for after mmcore, and finds no formula."""
    imports = ["from torch.utils.flop_counter import FlopCounterMode", "import mmcore"]
    imports = imports if is_first else imports[::-1]
    if is_sought:
        imports.insert(1, "from importlib import util; util.find_spec('torch.utils.flop_counter')")
    code = "; ".join([
        "import torch", *imports,
        "counter = FlopCounterMode(display=False); counter.__enter__()",
        "mmcore.functional.project(torch.ones(2, 3), torch.ones(5, 3))",
        "print(counter.get_total_flops())",
    ])  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(2 * 2 * 3 * 5), done.stderr


def test_modules_are_told_apart() -> None:
    """Catches an op that runs outside of the module that calls it."""
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), mmcore.nn.ProjectionHead(5, 3))
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(2, 6))
    counts = counter.get_flop_counts()
    assert sum(counts["Sequential.1"].values()) == 2 * 2 * 5 * 3
