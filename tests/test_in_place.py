"""What may be done with a result in place, and what a graph holds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from machines import BACKENDS
from objective_cases import Call, every_case, results
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import ROWS, Case

pytestmark = pytest.mark.op

Function = Callable[[Tensor, Tensor], Sequence[Tensor]]
LABELS = torch.arange(9) % 4


def projection(norm: str | None) -> Function:
    return lambda x, y: [functional.project(x, y, norm=norm, normalize=False)]


def by_label(x: Tensor, y: Tensor) -> Sequence[Tensor]:
    labels = LABELS.to(x.device)
    return functional.softmax_similarity(x, y, 2.0, row_label=labels, col_label=labels)[2:]


# Results of x and y, (9, 8) each, that no backward reads.
UNREAD: dict[str, Function] = {
    "project": projection(None),
    "project after LayerNorm": projection("layer"),
    "project after RMSNorm": projection("rms"),
    "softmax_similarity": lambda x, y: functional.softmax_similarity(x, y, 2.0)[3:],
    "softmax_similarity by labels": by_label,
    "sigmoid_similarity": lambda x, y: functional.sigmoid_similarity(x, y, 2.0, -1.0),
    "hardest_negatives": lambda x, y: functional.hardest_negatives(x, y)[:3],
    "gram": lambda x, y: [functional.gram(x, y)],
}
every_unread = pytest.mark.parametrize("name", UNREAD)


def inputs() -> list[Tensor]:
    return [torch.randn(9, 8, requires_grad=True) for _ in range(2)]


def doubled(result: Tensor) -> Tensor:
    return result.mul(2).relu()


def doubled_in_place(result: Tensor) -> Tensor:
    return result.mul_(2).relu_()


@every_unread
def test_a_result_that_no_backward_reads_changes_in_place(backend: str, name: str) -> None:
    """Catches an op that saves its result although its backward does not need it."""
    x, y = inputs()
    expected = sum(doubled(result).sum() for result in UNREAD[name](x, y))
    changed = sum(doubled_in_place(result).sum() for result in UNREAD[name](x, y))
    assert torch.equal(changed, expected)
    gradients = torch.autograd.grad(changed, (x, y))
    assert all(map(torch.equal, gradients, torch.autograd.grad(expected, (x, y))))


@every_unread
def test_the_results_left_alone_have_zeros_for_gradients(backend: str, name: str) -> None:
    """Catches a backward that takes the shape of a missing gradient from what is not saved."""
    x, y = inputs()
    for i, result in enumerate(UNREAD[name](x, y)):
        others = UNREAD[name](x, y)
        alone = torch.autograd.grad(result.sum(), (x, y), retain_graph=True)
        total = sum((k == i) * other.sum() for k, other in enumerate(others))
        for one, other in zip(alone, torch.autograd.grad(total, (x, y)), strict=True):
            torch.testing.assert_close(one, other)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_graph_holds_the_output_of_a_projection_only_to_normalize(
    backend: str, normalize: bool
) -> None:
    """Catches N·D numbers that stay alive for nothing."""
    saved: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tuple(tensor.shape))
        return tensor

    x, weight = torch.randn(9, 8), torch.randn(7, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.project(x, weight, norm="layer", normalize=normalize)
    assert ((9, 7) in saved) == normalize


def test_relu_in_place_behind_a_head(backend: str) -> None:
    """Catches a head that cannot stand before nn.ReLU(inplace=True)."""
    head = mmcore.nn.ProjectionHead(8, 7, normalize=False)
    x = torch.randn(9, 8)
    gradients = []
    for inplace in (False, True):
        loss = torch.nn.Sequential(head, torch.nn.ReLU(inplace))(x).square().sum()
        gradients.append(torch.autograd.grad(loss, list(head.parameters())))
    assert all(map(torch.equal, *gradients))


def test_rows_of_unit_length_must_stay_as_they_are(backend: str) -> None:
    """Catches a gradient from rows that were changed after the forward, instead of an error."""
    x, y = inputs()
    for result in (functional.l2_normalize(x), functional.project(x, y)):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            result.mul_(2).sum().backward()


@every_case([row.cases()[0] for row in ROWS.values()])
@pytest.mark.parametrize("machine", BACKENDS[:2])
def test_a_loss_is_divided_in_place(machine: str, case: Case) -> None:
    """Catches an objective that returns what its backward reads: gradients are accumulated so."""
    call = Call.of(case, 8, 8, scale=5.0)
    with mmcore.backend(machine):
        expected, tensors = call.tensors(), call.tensors()
        sum(value / 4 for value in results(call.function(*expected))).backward()
        sum(value.div_(4) for value in results(call.function(*tensors))).backward()
    for one, other in zip(tensors, expected, strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ["l2_normalize", "norm", "no norm", "gram"])
def test_no_result_is_its_input(backend: str, dtype: torch.dtype, name: str) -> None:
    """Catches a result that shares memory with an input: a change of one would change both."""
    x = torch.nn.functional.normalize(torch.randn(9, 8)).to(dtype)
    identity = torch.eye(8, dtype=dtype)
    found = {
        "l2_normalize": lambda: functional.l2_normalize(x),
        "norm": lambda: functional.project(x, identity, norm="rms"),
        "no norm": lambda: functional.project(x, identity, normalize=False),
        "gram": lambda: functional.gram(x),
    }[name]()
    before = x.clone()
    found.zero_()
    assert torch.equal(x, before)
