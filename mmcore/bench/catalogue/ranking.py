"""Ranking: queries and documents, in several directions, with hard negatives."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from mmcore import functional, nn
from mmcore.bench.catalogue.draw import Draw
from mmcore.bench.catalogue.formulas import identity, masked
from mmcore.bench.catalogue.packages import sentence_transformers_loss, temperature
from mmcore.bench.catalogue.row import Arguments, Loss, Row, Variant

FORWARD = ("query_to_doc",)
TWO = ("query_to_doc", "doc_to_query")
FOUR = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
MODES = ("in_batch_negatives", "hard_negatives", "all_negatives")


def raised(mode: str, rows: int, documents: int) -> Tensor:
    """Which negatives are penalised, (N, N·documents): column c is document c // N of c % N."""
    row, column = torch.arange(rows)[:, None], torch.arange(rows * documents)
    is_own, is_first = column % rows == row, column < rows
    return {
        "in_batch_negatives": ~is_own,
        "hard_negatives": is_own & ~is_first,
        "all_negatives": ~(is_own & is_first),
    }[mode]


def ranking(
    query: Tensor,
    documents: Sequence[Tensor],
    scale: Tensor,
    *,
    directions: Sequence[str] = FORWARD,
    partition: str = "joint",
    hardness: str | None = None,
    hardness_strength: float = 0.0,
) -> Tensor:
    """All directions in one denominator, or the mean of theirs; some negatives are raised."""
    itself, positive, every = identity(query), documents[0], torch.cat(list(documents))
    cosine = query @ every.T
    penalty = torch.zeros_like(cosine)
    if hardness is not None:
        penalty = cosine.detach() * raised(hardness, len(query), len(documents)).to(cosine.device)
    logits = {
        "query_to_doc": scale * cosine + hardness_strength * penalty,
        "query_to_query": masked(scale * (query @ query.T), ~itself),
        "doc_to_query": scale * (positive @ query.T),
        "doc_to_doc": masked(scale * (positive @ every.T), ~itself.repeat(1, len(documents))),
    }
    if partition == "joint":
        log_z = torch.cat([logits[name] for name in directions], 1).logsumexp(1)
    else:
        log_z = torch.stack([logits[name].logsumexp(1) for name in directions]).mean(0)
    return (log_z - logits["query_to_doc"].diagonal()).mean()


def one_negative(draw: Draw) -> Arguments:
    """Queries, their positives, and a hard negative of each."""
    query, *documents = draw.sides(3)
    return {"query": query, "documents": documents, "scale": draw.scalar_scale()}


def two_negatives(draw: Draw) -> Arguments:
    """One more hard negative, between the query and another's positive."""
    documents = one_negative(draw)["documents"]
    return {"documents": [*documents, draw.unit()]}


def sentence_transformers(**options: Any) -> Loss:
    """MultipleNegativesRankingLoss, which normalises once more."""
    name = "MultipleNegativesRankingLoss"
    sentence_transformers_loss(name)

    def loss(query: Tensor, documents: Sequence[Tensor], scale: float) -> Tensor:
        theirs = sentence_transformers_loss(name, scale=1 / temperature(scale), **options)
        found: Tensor = theirs.compute_loss_from_embeddings([query, *documents], torch.empty(0))
        return found

    return loss


def variant(
    name: str,
    directions: tuple[str, ...],
    partition: str = "joint",
    mode: str | None = None,
    documents: int = 2,
    **more: Any,
) -> Variant:
    """With its peer, whose options have other names."""
    options: dict[str, Any] = {"directions": directions, "partition": partition}
    theirs: dict[str, Any] = {"directions": directions, "partition_mode": partition}
    if mode is not None:
        options |= {"hardness": mode, "hardness_strength": 5.0}
        theirs |= {"hardness_mode": mode, "hardness_strength": 5.0}
    peers = {"sentence-transformers": lambda: sentence_transformers(**theirs)}
    axes = {"way": f"{directions}, {partition}", "mode": mode, "documents": documents}
    more |= {"inputs": two_negatives} if documents == 3 else {}
    return Variant(name, options, axes=axes, peers=peers, **more)


WAYS: dict[str, tuple[tuple[str, ...], str]] = {
    "one direction": (FORWARD, "joint"),
    "two directions apart": (TWO, "per_direction"),
    "four directions": (FOUR, "joint"),
}

RANKING = Row(
    functional.multiple_negatives_ranking_loss,
    nn.MultipleNegativesRankingLoss,
    ranking,
    one_negative,
    (
        variant("", FORWARD, title="ranking, one hard negative"),
        variant("queries among themselves", ("query_to_doc", "query_to_query")),
        variant("two directions", TWO),
        variant("documents among themselves", ("query_to_doc", "doc_to_doc")),
        variant("two directions apart", TWO, "per_direction"),
        variant("four directions", FOUR, title="ranking, four directions", products=18),
        variant("hardness", FORWARD, mode="all_negatives", title="ranking, hardness"),
        *(
            variant(f"{mode}, {name}", *way, mode, documents=3)
            for mode, (name, way) in product(MODES, WAYS.items())
        ),
    ),
    products=8,
    scales=(1.0, 20.0),
)

ROWS = (RANKING,)
