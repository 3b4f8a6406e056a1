"""torch.compile of batches of many sizes: one graph for the first, one for all others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from objective_cases import Call, few_in_fast_tier, results
from test_objectives import NOT_COMPILED, graphs
from torch import Tensor, fx

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import CASES, Case

# The last batch of an epoch may have any size; of one row most objectives have no negative.
SIZES = (6, 9, 17, 2, 8, 33, 3)
LEAST = {"coral_loss": 5}  # its second side has fewer rows


class Counter:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self) -> None:
        self.graphs = 0

    def __call__(self, graph: fx.GraphModule, inputs: Sequence[Tensor]) -> Callable[..., Any]:
        self.graphs += 1
        return graph.forward


@few_in_fast_tier(graphs())
def test_any_number_of_sizes_takes_two_compilations(case: Case) -> None:
    """Catches a size that is made a constant of the graph, and a compiled value that is wrong."""
    torch.compiler.reset()
    counter, width = Counter(), 8
    compiled = torch.compile(case.function(width), fullgraph=True, backend=counter)
    for rows in SIZES:
        call = Call.of(case, max(rows, LEAST.get(case.row.name, 0)), width, scale=5.0)
        given = call.given(call.tensors())
        torch.manual_seed(1)
        found = results(compiled(**given))
        assert all(loss.requires_grad for loss in found)
        expected = call.function(*call.leaves.values())
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert counter.graphs <= 2


@pytest.mark.parametrize("name", ["clip_loss", "siglip_loss", "matryoshka_loss, four prefixes"])
def test_a_workspace_that_holds_some_batches_takes_two_compilations(name: str) -> None:
    """Catches a choice by size, of what a forward keeps, that is made while a graph is traced."""
    torch.compiler.reset()
    counter, width = Counter(), 8
    compiled = torch.compile(CASES[name].function(width), fullgraph=True, backend=counter)
    with mmcore.workspace(4 * 2 * 20 * width):  # both gradients of 20 rows
        for rows in (6, 12, 40, 9, 60):
            call = Call.of(CASES[name], rows, width, scale=5.0)
            leaves = call.tensors()
            found = torch.autograd.grad(compiled(**call.given(leaves)), leaves)
            expected = torch.autograd.grad(call.loss(*leaves), leaves)
            torch.testing.assert_close(found, expected)
    assert counter.graphs <= 2


def test_ids_in_a_graph_are_refused_with_the_reason() -> None:
    """Catches an error from inside torch.compile that names no argument; without `fullgraph` the
    call runs outside the graph.
    """
    call = Call.of(CASES[NOT_COMPILED])
    torch.compiler.reset()
    compiled = torch.compile(functional.multimodal_loss, fullgraph=True, backend=Counter())
    with pytest.raises(Exception, match="ids must be numbers that the host can read"):
        compiled(**call.arguments)
    torch.compiler.reset()
    compiled = torch.compile(functional.multimodal_loss, backend=Counter())
    torch.testing.assert_close(
        results(compiled(**call.arguments)), call.function(*call.leaves.values())
    )
