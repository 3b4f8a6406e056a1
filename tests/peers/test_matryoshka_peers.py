"""Matryoshka beside sentence-transformers, which wraps a model and a loss of its embeddings."""

from __future__ import annotations

import pytest
import torch
from peer_cases import check, features, needs
from torch import Tensor, nn

from mmcore.functional import info_nce_loss, matryoshka_loss


class Embedded(nn.Module):
    """A model whose sentences are their embeddings already."""

    def forward(self, sentences: dict[str, Tensor]) -> dict[str, Tensor]:
        return dict(sentences)

    def get_embedding_dimension(self) -> int:
        return 32


@needs("sentence_transformers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_ranking_of_prefixes() -> None:
    from sentence_transformers.sentence_transformer.losses import (
        MatryoshkaLoss,
        MultipleNegativesRankingLoss,
    )

    model = Embedded()
    ranking = MultipleNegativesRankingLoss(model, scale=20.0)
    theirs = MatryoshkaLoss(model, ranking, [32, 16, 4], [1.0, 0.5, 0.25])

    def of_sentences(*sides: Tensor) -> Tensor:
        return theirs([{"sentence_embedding": side} for side in sides], torch.empty(0))

    def ours(x: Tensor, y: Tensor) -> Tensor:
        return matryoshka_loss(
            x, y, 20.0, dims=(4, 16, 32), weights=(0.25, 0.5, 1.0), objective=info_nce_loss
        )

    check(ours, of_sentences, features())
