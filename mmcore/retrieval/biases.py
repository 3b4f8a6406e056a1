"""Biases of items that correct hubs, those items which are near to everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.similarity import softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.retrieval import galleries
from mmcore.retrieval.arrays import as_tensor, is_array, like
from mmcore.retrieval.merging import check_k
from mmcore.retrieval.prepared import Gallery
from mmcore.retrieval.search import topk


def csls_bias(
    bank: Any, gallery: Any, k: int = 10, *, metric: str | None = None, backend: str | None = None
) -> Any:
    """The bias of cross-domain similarity local scaling: −r/2, r an item's mean score with a bank.

    Equivalent, without ever storing the (M, B) scores, to ::

        r = (gallery @ bank.T).topk(k, dim=1).values.mean(1)
        -r / 2

    With it `topk` orders items as 2·score(x, y) − r(x) − r(y) does: r(x) is the same for all items
    of a query.

    Args:
        bank: (B, D), what the gallery will be searched by: queries, or others like them, such as
            those of the training set. A gallery of any kind that `topk` takes, but no iterator,
            which could be read once only, where `gallery` is read by chunks.
        gallery: (M, D), of any kind that `topk` takes, in the dtype of `bank`. CSLS is meant for
            cosines: rows of unit length, or ``metric="cosine"`` here and in `topk`.
        k: how many rows of the bank count; all of them where it has fewer.
        metric, backend: as for `topk`.

    Returns:
        (M,) float64, of the kind of `gallery`, or of `bank` where that is read by chunks. NaN for a
        row with NaN, which is never found anyway.

    Raises:
        TypeError, ValueError: as `topk`; the bank has no row without NaN.

    Memory:
        O(M·k).

    Reference:
        Conneau et al., Word Translation Without Parallel Data, 2018,
        https://arxiv.org/abs/1710.04087

    Example:
        >>> import torch, mmcore
        >>> queries, gallery = (torch.nn.functional.normalize(torch.randn(50, 8)) for _ in range(2))
        >>> bias = mmcore.retrieval.csls_bias(queries, gallery, k=5)
        >>> found = mmcore.retrieval.topk(queries, gallery, 3, gallery_bias=bias)
    """
    k = check_k(k)
    of_gallery, of_bank = galleries.source_of(gallery).gallery, galleries.source_of(bank).gallery
    if of_bank is not None and of_bank.bias is not None:
        raise ValueError("bank must have no bias of its own, got a Gallery with one")
    if metric is None and of_gallery is not None:
        metric = of_gallery.metric
    parts = []
    for features in _pieces(gallery, bank):
        scores, indices = topk(
            features, bank, k, metric=metric, score_dtype="float64", backend=backend
        )
        count = (indices >= 0).sum(1)
        if bool(((count == 0) & ~scores[:, 0].isnan()).any()):
            raise ValueError("bank must have at least 1 row without NaN, got none")
        total = torch.zeros_like(scores[:, 0])
        for column, index in zip(scores.unbind(1), indices.unbind(1), strict=True):
            total += torch.where((index >= 0) | column.isnan(), column, 0.0)
        parts.append(total / count / -2)
    return _like(gallery, bank, _joined(parts))


@scale_not_temperature
def inverted_softmax_bias(
    bank: Any, gallery: Any, scale: float, *, backend: str | None = None
) -> Any:
    """The bias of the inverted softmax: −log Σ exp(scale·score with each row of a bank) / scale.

    Equivalent, without ever storing the (M, B) scores, to ::

        -(scale * gallery @ bank.T).logsumexp(1) / scale

    With it `topk` orders items by the probability that the query, of all rows of the bank, is the
    one that belongs to the item.

    Args:
        bank: (B, D), an array or a path: what the gallery will be searched by, as for `csls_bias`.
        gallery: (M, D), of any kind that `topk` takes, in the dtype of `bank`.
        scale: the inverse temperature, above 0; 20 to 100 for rows of unit length.
        backend: see `mmcore.backend`.

    Returns:
        (M,) float64, of the kind of `gallery`, or of `bank` where that is read by chunks. They are
        sums of exponentials in the precision of `functional.softmax_similarity`, whose last digits
        depend on the machine; `topk` is exact for the numbers that it is given.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit together, `bank` has no rows, `scale` is
            not above 0.

    Memory:
        O(M), and what `functional.softmax_similarity` takes.

    Reference:
        Smith et al., Offline bilingual word vectors, orthogonal transformations and the inverted
        softmax, 2017, https://arxiv.org/abs/1702.03859

    Example:
        >>> import torch, mmcore
        >>> queries, gallery = (torch.nn.functional.normalize(torch.randn(50, 8)) for _ in range(2))
        >>> bias = mmcore.retrieval.inverted_softmax_bias(queries, gallery, scale=30.0)
        >>> found = mmcore.retrieval.topk(queries, gallery, 3, gallery_bias=bias)
    """
    number = check.check_positive("scale", scale)
    rows = galleries.source_of(bank, "bank").array
    if rows is None:
        raise TypeError(f"bank must be an array or a path of one, got {type(bank).__name__}")
    check.check_rows("bank", rows)
    for source in (bank, gallery):
        if isinstance(source, Gallery) and source.metric != "inner_product":
            raise ValueError(
                f"inverted_softmax_bias is for inner products, got a Gallery for {source.metric}: "
                "divide rows by their norms for cosines"
            )
    parts = []
    for features in _pieces(gallery, bank):
        check.check_features(rows, features, "bank", "gallery")
        none = torch.full((features.shape[0],), -1, device=features.device)
        statistics = softmax_similarity(
            features, rows, number, target=none, columns=False, backend=backend
        )
        parts.append(statistics.row_lse / -number)
    return _like(gallery, bank, _joined(parts))


def _pieces(gallery: object, bank: object) -> Iterator[Tensor]:
    """The rows of the gallery: all at once where it is an array; none where it has none."""
    source = galleries.source_of(gallery)
    if source.array is not None:
        if source.array.shape[0]:
            yield source.array
        return
    assert source.chunks is not None
    if isinstance(bank, Iterator):
        raise TypeError(
            "bank must be an array, or chunks that can be read again, where gallery is read by "
            f"chunks, got {type(bank).__name__}"
        )
    for number, chunk in enumerate(source.chunks):
        features = as_tensor(f"chunk {number} of gallery", chunk)
        if len(features):
            yield features


def _joined(parts: list[Tensor]) -> Tensor:
    return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.float64)


def _like(gallery: object, bank: object, bias: Tensor) -> Any:
    """Of the kind of the first of both that is an array."""
    kind = next((each for each in (gallery, bank) if is_array(each)), np.zeros(0))
    return like(kind, bias)
