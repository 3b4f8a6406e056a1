"""docs/compatibility.md is the table of compatibility.py, and each of its cells has a test."""

from __future__ import annotations

import ast
from collections.abc import Callable
from contextlib import AbstractContextManager

import compatibility
import house
import pytest
import torch
from metric_cases import METRICS, every_metric, measure, sides
from objective_cases import Call, every_case
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter
from torch.fx.experimental.proxy_tensor import make_fx

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import ROWS, Case

pytestmark = pytest.mark.objective

PROOFS = {proof for row in compatibility.ROWS for cell in row.cells() for proof in cell.proofs}
every_objective = every_case([row.cases()[0] for row in ROWS.values()])
ABOUT_THE_PAGE = {
    "test_the_page_is_the_table", "test_every_cell_has_its_test",
    "test_every_test_of_a_feature_has_its_cell", "test_whatever_does_not_work_has_a_way_out",
}  # fmt: skip


def files() -> set[str]:
    return {proof.split("::")[0] for proof in PROOFS}


def proofs_in(file: str) -> set[str]:
    body = house.parsed(f"tests/{file}").body
    names = [each.name for each in body if isinstance(each, ast.FunctionDef)]
    return {f"{file}::{name}" for name in names if name.startswith("test_")}


# The page


def test_the_page_is_the_table() -> None:
    """Catches a cell that was changed in one of both places."""
    page = compatibility.PAGE.read_text(encoding="utf-8")
    assert page == compatibility.page(), "write it: python tests/compatibility.py"


def test_every_cell_has_its_test() -> None:
    """Catches a cell without a test, and one whose test was renamed or removed."""
    assert all(cell.proofs for row in compatibility.ROWS for cell in row.cells())
    assert set().union(*map(proofs_in, files())) >= PROOFS


@pytest.mark.parametrize("file", ["test_compatibility.py", "test_wrappers.py", "test_export.py"])
def test_every_test_of_a_feature_has_its_cell(file: str) -> None:
    """Catches a feature that is tested, and missing from the page."""
    about_the_page = {f"test_compatibility.py::{name}" for name in ABOUT_THE_PAGE}
    assert proofs_in(file) - about_the_page <= PROOFS


def test_whatever_does_not_work_has_a_way_out() -> None:
    """Catches a "no" that leaves a reader alone."""
    rows = [row for row in compatibility.ROWS if any(cell.says == "no" for cell in row.cells())]
    assert rows
    assert not [row.feature for row in rows if not row.way_out]


# Autograd


@pytest.mark.parametrize("block", [torch.no_grad, torch.inference_mode])
@every_objective
def test_calls_without_a_graph(
    case: Case, block: Callable[[], AbstractContextManager[None]]
) -> None:
    """Catches another value, or a graph, where none is recorded; heads and metrics likewise."""
    call, (x, y) = Call.of(case, 8, 8, scale=5.0), sides()
    head = mmcore.nn.ProjectionHead(6, 4)
    functions = [
        lambda: call.loss(*call.tensors()), lambda: head(x), lambda: functional.l2_normalize(x),
        *(lambda name=name: measure(name, x, y) for name in METRICS),
    ]  # fmt: skip
    expected = [function().detach() for function in functions]
    with block():
        found = [function() for function in functions]
    assert not [one for one in found if one.requires_grad]
    torch.testing.assert_close(found, expected)


@every_metric
def test_metrics_have_no_gradient(name: str) -> None:
    """Catches a metric that records a graph, which would hold its features."""
    x, y = (side.requires_grad_() for side in sides())
    found = measure(name, x, y)
    assert found.grad_fn is None
    assert torch.equal(found.clone().mul_(2), 2 * found)


@every_metric
def test_vmap_of_metrics(name: str) -> None:
    """Catches a metric whose rows depend on the batch's."""
    batch = [torch.randn(3, 9, 6) for _ in range(2)]
    found = torch.func.vmap(lambda x, y: measure(name, x, y))(*batch)
    expected = [measure(name, x, y) for x, y in zip(*batch, strict=True)]
    torch.testing.assert_close(found, torch.stack(expected))


@every_objective
def test_jacrev_and_functional_call(case: Case) -> None:
    """Catches a head or an objective that leaves torch.func."""
    call, head = Call.of(case, 8, 8, scale=5.0), mmcore.nn.ProjectionHead(8, 8)
    x = torch.randn(8, 8)
    first, *others = call.tensors()

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        projected = torch.func.functional_call(head, parameters, (x,))
        return call.loss(first.detach() + 0.1 * projected.mean(), *others)

    parameters = dict(head.named_parameters())
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    found = torch.func.jacrev(loss)({name: each.detach() for name, each in parameters.items()})
    torch.testing.assert_close(list(found.values()), list(expected))


@every_objective
def test_saved_tensors_go_through_hooks(case: Case) -> None:
    """Catches a tensor that the graph holds beside those that it saves."""
    call, head = Call.of(case, 8, 8, scale=5.0), mmcore.nn.ProjectionHead(6, 4)
    x = torch.randn(9, 6)
    tensors = [*call.tensors(), *head.parameters()]
    count = len(call.leaves)

    def total() -> Tensor:
        return call.loss(*tensors[:count]) + head(x).square()[:, 1:].sum()

    expected = torch.autograd.grad(total(), tensors)
    with torch.autograd.graph.save_on_cpu():
        found = total()
    torch.testing.assert_close(torch.autograd.grad(found, tensors), expected)


# Tracing and export


@every_metric
def test_metrics_compile_and_export(name: str) -> None:
    """Catches a metric that reads a number on the host."""
    x, y = sides()

    class Metric(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return measure(name, x, y)

    compiled = torch.compile(Metric(), fullgraph=True, backend="aot_eager")
    exported = torch.export.export(Metric(), (x, y)).module()
    for function in (compiled, exported):
        torch.testing.assert_close(function(x, y), measure(name, x, y))


@pytest.mark.parametrize("name", [*METRICS, "head"])
def test_heads_and_metrics_compile_twice_at_most(name: str) -> None:
    """Catches a size that is compiled as a constant."""
    torch.compiler.reset()
    head, counter = mmcore.nn.ProjectionHead(6, 4), CompileCounter()

    def function(x: Tensor, y: Tensor) -> Tensor:
        return head(x) if name == "head" else measure(name, x, y)

    compiled = torch.compile(function, fullgraph=True, backend=counter)
    for rows in (9, 7, 12, 30, 8):
        x, y = sides(rows)
        torch.testing.assert_close(compiled(x, y), function(x, y))
    assert counter.frame_count <= 2


@pytest.mark.parametrize("name", [*METRICS, "project", "l2_normalize"])
def test_make_fx_records_heads_and_metrics(name: str) -> None:
    """Catches a check that reads a number of a tensor that has none."""
    functions: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "project": lambda x, y: functional.project(x, y, norm="layer"),
        "l2_normalize": lambda x, y: functional.l2_normalize(x),
    }
    function = functions.get(name, lambda x, y: measure(name, x, y))
    recorded = make_fx(function)(*sides())
    x, y = sides()
    torch.testing.assert_close(recorded(x, y), function(x, y))
