"""Ranking beside sentence-transformers, whose similarity normalises."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from peer_cases import check, features, needs
from torch import Tensor

from mmcore.functional import l2_normalize, multiple_negatives_ranking_loss

WAYS = [
    ("query_to_doc",),
    ("query_to_doc", "query_to_query"),
    ("query_to_doc", "doc_to_query"),
    ("query_to_doc", "doc_to_doc"),
    ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
]


def compare(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    loss = MultipleNegativesRankingLoss(torch.nn.Identity(), scale=20.0, **theirs)

    def run(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
        rows = [l2_normalize(each) for each in (query, positive, negative)]
        return multiple_negatives_ranking_loss(rows[0], rows[1:], 20.0, **ours)

    inputs = [*features(), torch.randn(48, 32, requires_grad=True)]
    check(run, lambda *z: loss.compute_loss_from_embeddings(list(z), torch.empty(0)), inputs)


@needs("sentence_transformers")
@pytest.mark.parametrize(
    ("directions", "partition"), [*((way, "joint") for way in WAYS), (WAYS[2], "per_direction")]
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_directions(directions: tuple[str, ...], partition: str) -> None:
    compare(
        {"directions": directions, "partition_mode": partition},
        {"directions": directions, "partition": partition},
    )


@needs("sentence_transformers")
@pytest.mark.parametrize("directions", [WAYS[0], WAYS[-1]])
@pytest.mark.parametrize("hardness", ["in_batch_negatives", "hard_negatives", "all_negatives"])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_hardness(directions: tuple[str, ...], hardness: str) -> None:
    compare(
        {"directions": directions, "hardness_mode": hardness, "hardness_strength": 9.0},
        {"directions": directions, "hardness": hardness, "hardness_strength": 9.0},
    )
