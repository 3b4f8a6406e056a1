"""The hardness modes of multiple_negatives_ranking_loss against the formula over all logits."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from objective_cases import ROWS, check, draws, every_kind, masked, unit_rows
from torch import Tensor

from mmcore.functional import multiple_negatives_ranking_loss

pytestmark = pytest.mark.objective

MODES = ["in_batch_negatives", "hard_negatives", "all_negatives"]
WAYS = [
    (("query_to_doc",), "joint"),
    (("query_to_doc", "doc_to_query"), "per_direction"),
    (("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"), "joint"),
]


def penalised(mode: str, rows: int, documents: int) -> Tensor:
    """(N, N·documents): column c is document c // N of query c % N."""
    row, column = torch.arange(rows)[:, None], torch.arange(rows * documents)
    is_own, is_first = column % rows == row, column < rows
    return {
        "in_batch_negatives": ~is_own,
        "hard_negatives": is_own & ~is_first,
        "all_negatives": ~(is_own & is_first),
    }[mode]


def plain_loss(
    query: Tensor, documents: list[Tensor], scale: Tensor, mode: str, strength: float,
    directions: tuple[str, ...] = ("query_to_doc",), partition: str = "joint",
) -> Tensor:  # fmt: skip
    rows = len(query)
    itself, positive, every = torch.eye(rows, dtype=torch.bool), documents[0], torch.cat(documents)
    cosine = query @ every.T
    raised = penalised(mode, rows, len(documents))
    logits = {
        "query_to_doc": scale * cosine + strength * cosine.detach() * raised,
        "query_to_query": masked(scale * (query @ query.T), ~itself),
        "doc_to_query": scale * (positive @ query.T),
        "doc_to_doc": masked(scale * (positive @ every.T), ~itself.repeat(1, len(documents))),
    }
    if partition == "joint":
        log_z = torch.cat([logits[name] for name in directions], 1).logsumexp(1)
    else:
        log_z = torch.stack([logits[name].logsumexp(1) for name in directions]).mean(0)
    return (log_z - logits["query_to_doc"].diagonal()).mean()


@every_kind
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("directions", "partition"), WAYS)
def test_formula(
    backend: str, kind: str, mode: str, directions: tuple[str, ...], partition: str
) -> None:
    def rows(query: Tensor, positive: Tensor) -> tuple[Tensor, list[Tensor]]:
        return query, [positive, positive.roll(7, 0) ** 3, 0.5 * query + 0.5 * positive.roll(1, 0)]

    def plain(query: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
        return plain_loss(*rows(query, positive), scale, mode, 5.0, directions, partition)

    def ours(query: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
        return multiple_negatives_ranking_loss(
            *rows(query, positive), scale, directions=directions, partition=partition,
            hardness=mode, hardness_strength=5.0,
        )  # fmt: skip

    check(ours, plain, draws(kind, (1.0, 20.0)))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rows", [1, 12])
def test_float64_and_scale_of_zero(mode: str, rows: int) -> None:
    """A single query has no negatives of others; at scale 0 features have no gradient."""
    inputs = [unit_rows(rows).double().requires_grad_() for _ in range(3)]
    for number in (0.0, 7.0):
        scale = torch.tensor(number, dtype=torch.float64, requires_grad=True)
        ours = multiple_negatives_ranking_loss(
            inputs[0], inputs[1:], scale, hardness=mode, hardness_strength=3.0
        )
        plain = plain_loss(inputs[0], inputs[1:], scale, mode, 3.0)
        assert ours.dtype == torch.float64
        torch.testing.assert_close(ours, plain)
        pair = [torch.autograd.grad(loss, [*inputs, scale]) for loss in (ours, plain)]
        torch.testing.assert_close(*pair)


def test_one_document_each_has_no_hard_negatives(backend: str) -> None:
    x, y = unit_rows(), unit_rows()
    plain = multiple_negatives_ranking_loss(x, [y], 20.0)
    hard = multiple_negatives_ranking_loss(
        x, [y], 20.0, hardness="hard_negatives", hardness_strength=9.0
    )
    torch.testing.assert_close(hard, plain)


@pytest.mark.parametrize("mode", MODES)
def test_strength_of_zero_changes_nothing(mode: str) -> None:
    x, y = unit_rows(), unit_rows()
    assert torch.equal(
        multiple_negatives_ranking_loss(x, [y, x], 20.0, hardness=mode),
        multiple_negatives_ranking_loss(x, [y, x], 20.0),
    )


def test_bfloat16(backend: str) -> None:
    x, y, z = (unit_rows().bfloat16().requires_grad_() for _ in range(3))
    loss = multiple_negatives_ranking_loss(
        x, [y, z], 20.0, hardness="all_negatives", hardness_strength=9.0
    )
    exact = plain_loss(
        x.double(), [y.double(), z.double()], torch.tensor(20.0), "all_negatives", 9.0
    )
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), exact, rtol=1e-5, atol=0)
    ours, plain = (torch.autograd.grad(each, x)[0].double() for each in (loss, exact))
    # The gradients of the calls are bfloat16, and so is their sum.
    torch.testing.assert_close(ours, plain, rtol=2e-2, atol=2e-2 * plain.abs().max().item())


@pytest.mark.parametrize("mode", MODES)
def test_compiles_to_one_graph(mode: str) -> None:
    def loss(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        return multiple_negatives_ranking_loss(
            x, [y, x.roll(1, 0)], scale, directions=WAYS[2][0], hardness=mode, hardness_strength=9.0
        )

    inputs = [unit_rows(12).requires_grad_() for _ in range(2)]
    inputs.append(torch.tensor(20.0, requires_grad=True))
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(*inputs)
    assert torch.equal(compiled, loss(*inputs))
    pair = [torch.autograd.grad(each, inputs) for each in (compiled, loss(*inputs))]
    torch.testing.assert_close(*pair)


X = unit_rows(ROWS)
REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"hardness": "all"}, ValueError, "hardness must be one of 'in_batch_negatives', 'hard_neg"),
    ({"hardness_strength": 1.0}, ValueError, "hardness must be given where hardness_strength is"),
    (
        {"hardness": MODES[0], "hardness_strength": -1.0},
        ValueError,
        "hardness_strength must be finite and at least 0, got -1.0",
    ),
    (
        {"hardness": MODES[0], "hardness_strength": "a"},
        TypeError,
        "hardness_strength must be a number, got str",
    ),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_what_is_refused(options: dict[str, Any], error: type[Exception], message: str) -> None:
    loss: Callable[..., Tensor] = multiple_negatives_ranking_loss
    with pytest.raises(error, match=re.escape(message)):
        loss(X, [X], 5.0, **options)
