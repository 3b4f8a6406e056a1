"""The best of several results, exactly, and the result itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.ops import topk as topk_op
from mmcore.ops.topk import Found
from mmcore.retrieval.arrays import as_tensor, like


class TopK(NamedTuple):
    """What `topk` and `merge` return: for each query its best items, the best first; (N, k) each.

    Arrays of the kind of the queries, on their device.

    Example:
        >>> import torch, mmcore
        >>> scores, indices = mmcore.retrieval.topk(torch.eye(3), torch.eye(3), 1)
        >>> indices.flatten().tolist()
        [0, 1, 2]
    """

    scores: Any  # float32, or float64; −inf where there is no item, NaN for a query with NaN
    indices: Any  # int64, numbers of rows of the gallery; −1 where there is no item


def merge(parts: Sequence[TopK], k: int) -> TopK:
    """The best k of what was found in several parts of a gallery, exactly.

    Equivalent to a search of the whole gallery, where each part was found by ``topk(queries, part,
    k, first_index=…, score_dtype="float64")``.

    Args:
        parts: results of the same N queries, with float64 scores and indices of different items;
            their k may differ.
        k: how many items, at least 1 and, for the result to be exact, at most that of each part
            that has more items.

    Returns:
        `TopK` with float64 scores, (N, k), of the kind of the first part; merge it again as you
        like.

    Raises:
        TypeError, ValueError: there is no part; scores are not float64, because rounded ones cannot
            say which is larger; numbers of queries differ; one item is in two parts, as without
            `first_index`.

    Memory:
        O(N·Σk).

    Example:
        >>> import torch, mmcore
        >>> x, y = torch.randn(3, 8), torch.randn(100, 8)
        >>> parts = [
        ...     mmcore.retrieval.topk(x, y[i : i + 50], 5, first_index=i, score_dtype="float64")
        ...     for i in (0, 50)
        ... ]
        >>> found = mmcore.retrieval.merge(parts, 5)
        >>> torch.equal(found.indices, mmcore.retrieval.topk(x, y, 5).indices)
        True
    """
    k = check_k(k)
    if not parts:
        raise ValueError("parts must have at least 1 result, got none")
    first = None
    scores, indices = [], []
    for number, part in enumerate(parts):
        value, index = _part(number, part)
        first = value if first is None else first
        if value.shape[0] != first.shape[0]:
            raise ValueError(
                f"parts must be of the same queries, got {first.shape[0]} rows in part 0 and "
                f"{value.shape[0]} in part {number}"
            )
        check.check_device(f"part {number}", value, first, "part 0")
        scores.append(value)
        indices.append(index)
    assert first is not None
    _check_different(torch.cat(indices, 1))
    found = best_of_all(scores, indices, k)
    return TopK(*(like(parts[0].scores, value) for value in found))


def best_of_all(scores: Sequence[Tensor], indices: Sequence[Tensor], k: int) -> Found:
    """(N, k) of parts (N, …) of the same queries; a row with NaN stays one."""
    nothing = topk_op.nothing(scores[0], k)
    joined, numbers = (
        torch.cat([nothing.scores, *scores], 1),
        torch.cat([nothing.indices, *indices], 1),
    )
    is_nan = joined.isnan()
    found = topk_op.merged(joined.masked_fill(is_nan, -torch.inf), numbers, k)
    found.scores[is_nan.any(1)] = torch.nan
    return found


def check_k(value: object) -> int:
    """`value`, at least 1."""
    k = check.as_integer("k", value)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    return k


def _part(number: int, part: object) -> tuple[Tensor, Tensor]:
    """The scores and the indices of one part, checked."""
    if not isinstance(part, tuple) or len(part) != 2:
        raise TypeError(
            f"parts must be results of topk, got {type(part).__name__} as part {number}"
        )
    scores, indices = (as_tensor(f"part {number}", value) for value in part)
    if scores.dtype != torch.float64:
        dtype = str(scores.dtype).removeprefix("torch.")
        raise TypeError(
            f"part {number} must have float64 scores, got {dtype}: search each part by "
            "topk(…, score_dtype='float64')"
        )
    if indices.dtype != torch.int64 or scores.ndim != 2 or scores.shape != indices.shape:
        raise ValueError(
            f"part {number} must have scores and int64 indices of one shape (N, k), got "
            f"{tuple(scores.shape)} and {tuple(indices.shape)}"
        )
    return scores, indices


def _check_different(indices: Tensor) -> None:
    """No item occurs twice in a row."""
    ordered = indices.sort(dim=1).values
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    if bool(twice.any()):
        row, place = twice.nonzero()[0].tolist()
        raise ValueError(
            f"parts must be of different items, got item {int(ordered[row, place])} twice for "
            f"query {row}: give each part the number of its first row as first_index"
        )
