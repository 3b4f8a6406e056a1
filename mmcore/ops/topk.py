"""The items of a gallery with the highest score for each query (backends/retrieval.py).

Chunk after chunk: `best` is what earlier chunks have found, and the call returns the best of both.
Without a gradient; no op of torch, because indices are data that a graph cannot know.
"""

from __future__ import annotations

import torch

from mmcore.backends import choose, implementation, selected
from mmcore.backends.retrieval import METRICS as METRICS
from mmcore.backends.retrieval import Found as Found
from mmcore.backends.retrieval import TopkInputs as TopkInputs


def call(inputs: TopkInputs, best: Found | None, *, backend: str | None) -> Found:
    """The best items of this chunk and of `best`; the inputs are checked."""
    name = choose(selected(backend), inputs.queries)
    with torch.no_grad():
        found: Found = implementation(name, "topk").search(inputs, best)
    return found
