"""The items of a gallery with the highest score for each query (backends/retrieval.py).

Chunk after chunk: `best` is what earlier chunks have found, and the call returns the best of both.
Without a gradient; no op of torch, because indices are data that a graph cannot know.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends import choose, implementation, selected
from mmcore.backends.reference import scores as reference_scores
from mmcore.backends.reference import topk as reference
from mmcore.backends.retrieval import FIRST_PASSES as FIRST_PASSES
from mmcore.backends.retrieval import METRICS as METRICS
from mmcore.backends.retrieval import Found as Found
from mmcore.backends.retrieval import TopkInputs as TopkInputs


def call(inputs: TopkInputs, best: Found | None, *, backend: str | None) -> Found:
    """The best items of this chunk and of `best`; the inputs are checked."""
    name = choose(selected(backend), inputs.queries)
    with torch.no_grad():
        found: Found = implementation(name, "topk").search(inputs, best)
    return found


def prepare(gallery: Tensor, metric: str, *, backend: str | None) -> Tensor | None:
    """What a search reads in place of the chunk, uint8; None where the backend has no such form."""
    module = implementation(choose(selected(backend), gallery), "topk")
    if not hasattr(module, "prepare"):
        return None
    with torch.no_grad():
        prepared: Tensor = module.prepare(gallery, metric)
    return prepared


def merged(scores: Tensor, indices: Tensor, k: int) -> Found:
    """The first k of each row by (−score, index), of items in any order; −1 is no item."""
    return reference.best_of(scores, indices, k)


def nothing(queries: Tensor, k: int) -> Found:
    """What is found in an empty gallery."""
    return reference.nothing(queries, k)


def pair_scores(queries: Tensor, items: Tensor, metric: str) -> Tensor:
    """(N,) the score of each query with the item of the same row, as a search computes it."""
    row = torch.arange(queries.shape[0], device=queries.device)
    terms = reference_scores.row_terms(queries), reference_scores.row_terms(items)
    return reference_scores.pair_scores(queries, items, metric, *terms, row, row)
