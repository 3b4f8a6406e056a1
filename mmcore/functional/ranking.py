"""Queries against documents, and documents and queries against each other, in one denominator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.reductions import as_loss
from mmcore.functional.similarity import softmax_similarity

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
PARTITIONS = ("joint", "per_direction")
# Of one kind alone: none of them is the positive.
WITHOUT_POSITIVE = ("query_to_query", "doc_to_doc")


def multiple_negatives_ranking_loss(
    query: Tensor,
    documents: Sequence[Tensor],
    scale: float | Tensor,
    *,
    directions: Sequence[str] = ("query_to_doc",),
    partition: str = "joint",
    backend: str | None = None,
) -> Tensor:
    """InfoNCE of queries and documents, whose negatives may lie in four directions.

    Equivalent, without ever storing a matrix of logits, to ::

        positive, every = documents[0], torch.cat(documents)
        logits = {
            "query_to_doc": scale * query @ every.T,
            "query_to_query": scale * query @ query.T,  # −inf for i = j
            "doc_to_query": scale * positive @ query.T,
            "doc_to_doc": scale * positive @ every.T,  # −inf for documents of the same query
        }
        if partition == "joint":
            log_z = torch.cat([logits[d] for d in directions], 1).logsumexp(1)
        else:
            log_z = torch.stack([logits[d].logsumexp(1) for d in directions]).mean(0)
        (log_z - logits["query_to_doc"].diagonal()).mean()

    Args:
        query: (N, D), any floating-point dtype; rows of unit length.
        documents: the positives and then any number of hard negatives, (N, D) each: row i of all is
            of query i.
        scale: a number or a one-element tensor: the inverse temperature.
        directions: which of ``"query_to_doc"`` (needed), ``"query_to_query"``, ``"doc_to_query"``
            and ``"doc_to_doc"``.
        partition: ``"joint"``, one denominator over all directions, or ``"per_direction"``, a
            denominator each, for the directions between queries and documents.
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`; documents are none or differ in shape; a
            direction is unknown, given twice, has no positive of its own where each must, or
            ``"query_to_doc"`` is missing.

    Memory:
        As `softmax_similarity`, and the documents once more, one after the other. The directions
        query to document and back are one pass.

    Reference:
        sentence-transformers' ``MultipleNegativesRankingLoss``; Henderson et al., Efficient Natural
        Language Response Suggestion for Smart Reply, 2017, https://arxiv.org/abs/1705.00652

    Example:
        >>> import torch, mmcore
        >>> query, positive, negative = (
        ...     mmcore.functional.l2_normalize(torch.randn(4, 8)) for _ in range(3)
        ... )
        >>> mmcore.functional.multiple_negatives_ranking_loss(
        ...     query, [positive, negative], 20.0, directions=("query_to_doc", "doc_to_doc")
        ... ).shape
        torch.Size([])
    """
    check.check_matrix("query", query)
    _check_documents(query, documents)
    check.check_choice("partition", partition, PARTITIONS)
    _check_directions(directions, partition)
    every = documents[0] if len(documents) == 1 else torch.cat(list(documents))
    itself = torch.arange(query.shape[0], device=query.device)
    none = torch.full_like(itself, -1)
    has_way_back = "doc_to_query" in directions
    forth = softmax_similarity(query, every, scale, columns=has_way_back, backend=backend)
    sums = [forth.row_lse]
    if has_way_back:
        sums.append(forth.col_lse[: query.shape[0]])
    if "query_to_query" in directions:
        among = softmax_similarity(
            query, query, scale, target=none, row_group=itself, columns=False, backend=backend
        )
        sums.append(among.row_lse)
    if "doc_to_doc" in directions:
        among = softmax_similarity(
            documents[0], every, scale, target=none, row_group=itself,
            col_group=itself.repeat(len(documents)), columns=False, backend=backend,
        )  # fmt: skip
        sums.append(among.row_lse)
    stacked = torch.stack(sums)
    log_z = stacked.logsumexp(0) if partition == "joint" else stacked.mean(0)
    return as_loss((log_z - forth.row_pos).mean(), query)


def _check_documents(query: Tensor, documents: Sequence[Tensor]) -> None:
    if isinstance(documents, Tensor):
        raise TypeError("documents must be a sequence of tensors, got one Tensor")
    if not documents:
        raise ValueError("documents must begin with the positives, got none")
    for i, value in enumerate(documents):
        name = f"documents[{i}]"
        check.check_matrix(name, value)
        if value.shape != query.shape:
            raise ValueError(
                f"{name} must have shape {tuple(query.shape)} to match query, "
                f"got {tuple(value.shape)}"
            )
        check.check_matches(name, value, query, "query")


def _check_directions(directions: Sequence[str], partition: str) -> None:
    for name in directions:
        check.check_choice("directions", name, DIRECTIONS)
    if "query_to_doc" not in directions or len(set(directions)) < len(directions):
        raise ValueError(
            f"directions must have 'query_to_doc', and each once, got {tuple(directions)}"
        )
    if partition == "per_direction" and set(directions) & set(WITHOUT_POSITIVE):
        raise ValueError(
            "directions must each hold the positive where partition is 'per_direction', "
            f"got {tuple(directions)}"
        )
