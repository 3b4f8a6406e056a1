"""Approximate indices of other libraries: their recall against the exact answer, and an export."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.ops import topk as topk_op
from mmcore.ops.topk import METRICS
from mmcore.retrieval import galleries
from mmcore.retrieval.arrays import as_tensor
from mmcore.retrieval.merging import check_k
from mmcore.retrieval.search import topk

ROWS_ADDED = 65536


def recall_of(
    index: Any,
    queries: Any,
    gallery: Any,
    k: int,
    *,
    metric: str | None = None,
    backend: str | None = None,
) -> float:
    """The share of the k best items that an approximate index finds, over all queries.

    Equivalent, where no scores are equal, to ::

        exact = mmcore.retrieval.topk(queries, gallery, k, metric=metric).indices
        found = index.search(queries, k)[1]
        sum(len(set(e) & set(f)) for e, f in zip(exact.tolist(), found.tolist())) / exact.numel()

    An item counts as found if its exact score is at least the k-th best: of equal items it does not
    matter which the index returns. An item that it returns twice counts once.

    Args:
        index: anything with ``search(queries, k)``, which takes float32 queries (N, D) of NumPy and
            returns (scores, indices), as faiss does, or an object with `keys`, as usearch does.
            Indices number the rows of `gallery`; those below 0 are no items.
        queries: (N, D), an array.
        gallery: (M, D), an array or a path of one.
        k: how many items, at least 1; at most M count.
        metric: what the index ranks by, as for `topk`.
        backend: see `mmcore.backend`.

    Returns:
        From 0 to 1; NaN where no query has an item to find.

    Raises:
        TypeError, ValueError: as `topk`; `index` returns something else, or a number of no row.

    Memory:
        O(N·k), and N·k rows some at a time.

    Example:
        >>> import torch, mmcore
        >>> class Half:
        ...     def search(self, queries, k):  # looks at the first five rows alone
        ...         return mmcore.retrieval.topk(queries, torch.eye(10)[:5].numpy(), k)
        >>> mmcore.retrieval.recall_of(Half(), torch.eye(10), torch.eye(10), 1)
        0.5
    """
    k = check_k(k)
    x = as_tensor("queries", queries)
    check.check_matrix("queries", x)
    source = galleries.source_of(gallery)
    if source.array is None:
        raise TypeError(f"gallery must be an array or a path of one, got {type(gallery).__name__}")
    exact = topk(x, gallery, k, metric=metric, score_dtype="float64", backend=backend)
    metric = source.gallery.metric if metric is None and source.gallery else metric or METRICS[0]
    found = _found_by(index, x, k, source.array.shape[0])
    counts = (exact.indices >= 0).sum(1)
    least = exact.scores.gather(1, (counts[:, None] - 1).clamp(min=0))
    bias = None if source.gallery is None else source.gallery.bias
    scores = _scores(x, source.array, found, metric, bias)
    right = (found >= 0) & (scores >= least) & (counts[:, None] > 0)
    right_counts = torch.minimum(right.sum(1), counts)
    return float(right_counts.sum() / counts.sum())


def to_faiss(gallery: Any, metric: str | None = None) -> Any:
    """The gallery as a flat index of faiss, from which its other indices can be compared or built.

    Args:
        gallery: (M, D), of any kind that `topk` takes, without a bias and without groups, which
            faiss does not have.
        metric: ``"inner_product"``, ``"cosine"`` or ``"l2"``. Default: that of a `Gallery`, else
            the inner product. For the cosine the rows are divided by their norms: normalise the
            queries too. faiss returns squared distances for l2, without the minus of `topk`.

    Returns:
        `faiss.IndexFlatIP` or `faiss.IndexFlatL2`, which hold a float32 copy of the rows.

    Raises:
        ImportError: faiss is not installed. TypeError, ValueError: as `topk`; the gallery has a
            bias or groups, or no rows.

    Memory:
        4·M·D bytes, and a chunk.

    Example:
        >>> import torch, mmcore
        >>> try:
        ...     index = mmcore.retrieval.to_faiss(torch.eye(4))
        ... except ImportError:  # without faiss
        ...     pass
    """
    source = galleries.source_of(gallery)
    if source.gallery is not None:
        if source.gallery.bias is not None or source.gallery.group is not None:
            raise ValueError("gallery must have no bias and no groups, which faiss does not have")
        metric = metric or source.gallery.metric
    metric = metric or METRICS[0]
    check.check_choice("metric", metric, METRICS)
    try:
        faiss = import_module("faiss")
    except ImportError as error:
        raise ImportError("to_faiss needs faiss: install it by `pip install faiss-cpu`") from error
    pieces = source.array.split(ROWS_ADDED) if source.array is not None else source.chunks
    assert pieces is not None
    index = None
    for number, piece in enumerate(pieces):
        rows = as_tensor(f"chunk {number} of gallery", piece)
        check.check_matrix(f"chunk {number} of gallery", rows)
        if index is None:
            kind = faiss.IndexFlatL2 if metric == "l2" else faiss.IndexFlatIP
            index = kind(rows.shape[1])
        index.add(_rows_for_faiss(rows, metric))
    if index is None:
        raise ValueError("gallery must have at least 1 chunk, got none")
    return index


def _rows_for_faiss(rows: Tensor, metric: str) -> Any:
    """float32 rows of NumPy without gaps."""
    if metric == "cosine":
        rows = torch.nn.functional.normalize(rows.double(), dim=1)
    return np.ascontiguousarray(rows.float().cpu().numpy())


def _found_by(index: Any, queries: Tensor, k: int, items: int) -> Tensor:
    """(N, ≤ k) the index's answer; what it returns twice in a row is −1 the second time."""
    if not hasattr(index, "search"):
        raise TypeError(f"index must have a method search, got {type(index).__name__}")
    answer = index.search(np.ascontiguousarray(queries.float().cpu().numpy()), k)
    numbers = answer.keys if hasattr(answer, "keys") else answer[1]
    found = torch.as_tensor(np.asarray(numbers).astype(np.int64), device=queries.device)
    if found.ndim != 2 or found.shape[0] != queries.shape[0] or found.shape[1] > k:
        raise ValueError(
            f"index.search must return indices of shape ({queries.shape[0]}, {k}), got "
            f"{tuple(found.shape)}"
        )
    if found.numel() and int(found.max()) >= items:
        raise ValueError(
            f"index.search must return numbers of the {items} rows of gallery, got "
            f"{int(found.max())}"
        )
    ordered = found.sort(dim=1).values
    again = torch.nn.functional.pad(ordered[:, 1:] == ordered[:, :-1], (1, 0))
    return ordered.masked_fill(again, -1)


def _scores(
    queries: Tensor, gallery: Tensor, found: Tensor, metric: str, bias: Tensor | None
) -> Tensor:
    """(N, ≤ k) exact scores, some queries at a time; of −1 those of the first row."""
    scores = torch.empty(found.shape, dtype=torch.float64, device=queries.device)
    if not found.numel() or not gallery.shape[0]:
        return scores.fill_(-torch.inf)
    size = max(1, ROWS_ADDED // found.shape[1])
    for first in range(0, found.shape[0], size):
        rows = slice(first, first + size)
        at = found[rows].clamp(min=0).flatten().to(gallery.device)
        items = gallery[at].to(queries.device)
        asking = queries[rows].repeat_interleave(found.shape[1], 0)
        score = topk_op.pair_scores(asking, items, metric)
        if bias is not None:
            score += bias[at.to(bias.device)].to(score.device)
        scores[rows] = score.view(-1, found.shape[1])
    return scores
