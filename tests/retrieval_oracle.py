"""The contract of mmcore/backends/retrieval.py, literally, in NumPy: whole matrices, float64."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mmcore.backends.retrieval import Found, TopkInputs

Doubles = NDArray[np.float64]


def doubles(rows: Tensor) -> Doubles:
    return rows.double().numpy()


def sum8(terms: Doubles) -> Doubles:
    """Of the last axis: one addition after another, which np.sum does not promise."""
    lanes = np.zeros((*terms.shape[:-1], 8))
    for k in range(terms.shape[-1]):
        lanes[..., k % 8] += terms[..., k]
    for _ in range(3):
        lanes = lanes[..., ::2] + lanes[..., 1::2]
    return lanes[..., 0]


def inverse_norms(rows: Doubles) -> Doubles:
    squares = sum8(rows * rows)
    return np.where(squares == 0, 0.0, 1 / np.sqrt(np.where(squares == 0, 1.0, squares)))


def scores(queries: Tensor, gallery: Tensor, metric: str, bias: Tensor | None = None) -> Doubles:
    """(N, M), one query at a time: the terms of all pairs would take N·M·D numbers."""
    x, y = doubles(queries), doubles(gallery)
    found = np.empty((len(x), len(y)))
    with np.errstate(invalid="ignore"):  # ∞ − ∞ and 0·∞ are NaN, as the contract has it
        norms = inverse_norms(y)
        for i, (row, norm) in enumerate(zip(x, inverse_norms(x), strict=True)):
            if metric == "l2":
                found[i] = -sum8((row - y) * (row - y))
            else:
                products = sum8(row * y)
                found[i] = products * (norm * norms) if metric == "cosine" else products
        return found if bias is None else found + doubles(bias)


def excluded(inputs: TopkInputs) -> NDArray[np.bool_]:
    """(N, M): which items a query does not see."""
    n, m = len(inputs.queries), len(inputs.gallery)
    found = np.zeros((n, m), dtype=bool)
    if inputs.query_group is not None and inputs.gallery_group is not None:
        groups = inputs.query_group.numpy()[:, None]
        found |= (groups == inputs.gallery_group.numpy()) & (groups != -1)
    if inputs.excluded is not None:
        found |= inputs.excluded.numpy()[:, None] == np.arange(m) + inputs.offset
    return found


def oracle_topk(inputs: TopkInputs, best: Found | None = None) -> Found:
    """What `search` of every backend returns, to the bit."""
    n, m, k = len(inputs.queries), len(inputs.gallery), inputs.k
    all_scores = scores(inputs.queries, inputs.gallery, inputs.metric, inputs.bias)
    indices = np.broadcast_to(np.arange(m) + inputs.offset, (n, m))
    is_candidate = ~np.isnan(all_scores) & ~excluded(inputs)
    if best is not None:
        all_scores = np.concatenate([best.scores.numpy(), all_scores], 1)
        indices = np.concatenate([best.indices.numpy(), indices], 1)
        is_candidate = np.concatenate([best.indices.numpy() >= 0, is_candidate], 1)
    found = Found(
        torch.full((n, k), -torch.inf, dtype=torch.float64),
        torch.full((n, k), -1, dtype=torch.int64),
    )
    for i in range(n):
        at = np.flatnonzero(is_candidate[i])
        at = at[np.lexsort((indices[i, at], -all_scores[i, at]))][:k]
        found.scores[i, : len(at)] = torch.from_numpy(all_scores[i, at])
        found.indices[i, : len(at)] = torch.from_numpy(indices[i, at].copy())
    return found
