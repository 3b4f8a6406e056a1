"""Classes by the votes of the nearest examples."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.analysis.features import PIECE_BYTES, as_labels, as_matrix
from mmcore.functional import arguments as check
from mmcore.retrieval import arrays, topk

MOST = 2**31


class NeighbourVotes(NamedTuple):
    """What `knn_classify` returns: for each row the class that its neighbours elect; (N,) each.

    Arrays of the library of the features, on their device.

    Example:
        >>> import torch, mmcore
        >>> train, labels = torch.eye(4), torch.tensor([0, 0, 1, 1])
        >>> mmcore.analysis.knn_classify(torch.eye(4), train, labels, k=1).classes.tolist()
        [0, 0, 1, 1]
    """

    classes: Any  # int64; −1 without a neighbour, as for a row with NaN
    shares: Any  # float64, of all votes those for the class; NaN without a neighbour


def knn_classify(
    features: Any, train: Any, labels: Any, *, k: int = 20, temperature: float = 0.07
) -> NeighbourVotes:
    """The class that the k nearest examples vote for, each with a weight of exp(cosine / T).

    Equivalent, with the (N, M) cosines never stored, to ::

        cosines = F.normalize(features) @ F.normalize(train).T
        nearest, index = cosines.topk(k)
        votes = torch.zeros(N, C).scatter_add(1, labels[index], (nearest / temperature).exp())
        shares, classes = (votes / votes.sum(1, keepdim=True)).max(1)

    as the evaluations of instance discrimination and DINO do, with the same defaults.

    Args:
        features: (N, D), a tensor, a NumPy array (a mapped file too) or any with `__dlpack__`, any
            floating-point dtype, normalised or not.
        train: (M, D), the examples: in the dtype of `features` whatever `retrieval.topk` takes as a
            gallery: an array, a file, a prepared `Gallery` or an iterable of chunks.
        labels: (M,) integers, at least 0: the class of each example.
        k: how many examples vote, at least 1; all M where it is more.
        temperature: above 0: the smaller, the more the nearest alone decide.

    Returns:
        `NeighbourVotes`. The neighbours are those of `retrieval.topk`, exact, and of equal cosines
        the example of the lower index; of equal votes the lower class wins.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together, or an option is out of
            range.

    Memory:
        O(N·k), what `retrieval.topk` takes, and 16 MiB for the votes under way.

    Reference:
        Wu et al., Unsupervised Feature Learning via Non-Parametric Instance Discrimination, 2018,
        https://arxiv.org/abs/1805.01978, and Caron et al., Emerging Properties in Self-Supervised
        Vision Transformers, 2021, https://arxiv.org/abs/2104.14294

    Example:
        >>> import torch, mmcore
        >>> train, labels = torch.randn(100, 8), torch.randint(0, 5, (100,))
        >>> found = mmcore.analysis.knn_classify(train, train, labels, k=1)
        >>> torch.equal(found.classes, labels)
        True
    """
    rows = as_matrix("features", features)
    temperature = check.check_positive("temperature", temperature)
    k = check.check_count("k", k, MOST)
    classes = _labels_of(labels, train)
    found = topk(rows, train, k, metric="cosine", score_dtype="float64")
    if found.indices.numel() and int(found.indices.max()) >= len(classes):
        raise ValueError(
            f"labels must have a number for each row of train, got {len(classes)} for more rows"
        )
    votes = [_elect(*each) for each in _pieces(found, classes.to(rows.device), temperature)]
    parts = (torch.cat(part) for part in zip(*votes, strict=True))
    return NeighbourVotes(*(arrays.like(features, part) for part in parts))


def _labels_of(labels: object, train: object) -> Tensor:
    """Checked against the examples where these say how many they are."""
    given = arrays.as_tensor("labels", labels)
    if arrays.is_array(train):
        return as_labels("labels", given, as_matrix("train", train), "train")
    return as_labels("labels", given, given, "train")


def _pieces(found: Any, classes: Tensor, temperature: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The classes of neighbours and the weights of their votes, some rows at a time."""
    if not len(classes):
        classes = classes.new_zeros(1)  # nobody has this neighbour
    rows = max(1, PIECE_BYTES // (8 * found.scores.shape[1]))
    for start in range(0, max(1, len(found.scores)), rows):
        scores, index = found.scores[start : start + rows], found.indices[start : start + rows]
        # Relative to the nearest neighbour, or a small temperature would overflow.
        weights = ((scores - scores[:, :1]) / temperature).exp()
        yield classes[index.clamp(min=0)], torch.where(index < 0, 0, weights)


def _elect(classes: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    # One neighbour after another: classes with the same weights get the same bits.
    votes = torch.zeros_like(weights)
    for j in range(classes.shape[1]):
        votes += torch.where(classes == classes[:, j : j + 1], weights[:, j : j + 1], 0)
    most = votes.amax(1)
    last = torch.iinfo(torch.int64).max
    winner = torch.where(votes == most[:, None], classes, last).amin(1)
    has_votes = most > 0
    share = torch.where(has_votes, most / weights.sum(1), torch.nan)
    return torch.where(has_votes, winner, -1), share
