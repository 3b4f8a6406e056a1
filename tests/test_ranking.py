"""multiple_negatives_ranking_loss in every direction; its hardness: test_ranking_hardness.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_cases import ROWS, check, draws, every_kind, masked, unit_rows
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from mmcore import functional

pytestmark = pytest.mark.objective

WAYS = [
    ("query_to_doc",),
    ("query_to_doc", "doc_to_query"),
    ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
]


@every_kind
@pytest.mark.parametrize(
    ("directions", "partition"), [*((way, "joint") for way in WAYS), (WAYS[1], "per_direction")]
)
def test_ranking(backend: str, kind: str, directions: tuple[str, ...], partition: str) -> None:
    itself = torch.eye(ROWS, dtype=torch.bool)

    def plain(query: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
        every = torch.cat([positive, positive.roll(7, 0) ** 3])
        logits = {
            "query_to_doc": scale * (query @ every.T),
            "query_to_query": masked(scale * (query @ query.T), ~itself),
            "doc_to_query": scale * (positive @ query.T),
            "doc_to_doc": masked(scale * (positive @ every.T), ~torch.cat([itself, itself], 1)),
        }
        if partition == "joint":
            log_z = torch.cat([logits[name] for name in directions], 1).logsumexp(1)
        else:
            log_z = torch.stack([logits[name].logsumexp(1) for name in directions]).mean(0)
        return (log_z - logits["query_to_doc"].diagonal()).mean()

    def ours(query: Tensor, positive: Tensor, scale: Tensor) -> Tensor:
        return functional.multiple_negatives_ranking_loss(
            query, [positive, positive.roll(7, 0) ** 3], scale, directions=directions,
            partition=partition,
        )  # fmt: skip

    check(ours, plain, draws(kind, (1.0, 20.0)))


class Calls(TorchDispatchMode):
    """Keeps the arguments of every call of softmax_similarity."""

    def __init__(self) -> None:
        super().__init__()
        self.arguments: list[tuple[Any, ...]] = []

    def __torch_dispatch__(
        self, op: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        if op is torch.ops.mmcore.softmax_similarity.default:
            self.arguments.append(args)
        return op(*args, **(kwargs or {}))


@pytest.mark.parametrize(("documents", "halves"), [(1, 2), (2, 1)])
def test_ranking_of_one_kind_takes_half_the_matrix(documents: int, halves: int) -> None:
    """Queries among themselves, and documents where there is one of each query."""
    rows = [unit_rows() for _ in range(documents)]
    with Calls() as calls:
        functional.multiple_negatives_ranking_loss(unit_rows(), rows, 5.0, directions=WAYS[-1])
    assert len(calls.arguments) == 3
    assert sum(y is None for _, y, *_ in calls.arguments) == halves
