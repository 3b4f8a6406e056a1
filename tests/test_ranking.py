"""How many products multiple_negatives_ranking_loss takes; its formula: test_objectives.py."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from objective_cases import unit_rows
from torch.utils._python_dispatch import TorchDispatchMode

from mmcore import functional
from mmcore.bench.catalogue.ranking import FOUR

pytestmark = pytest.mark.objective


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
        functional.multiple_negatives_ranking_loss(unit_rows(), rows, 5.0, directions=FOUR)
    assert len(calls.arguments) == 3
    assert sum(y is None for _, y, *_ in calls.arguments) == halves
