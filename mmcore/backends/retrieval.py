"""What goes into the families of retrieval, and what comes out of them.

Scores are float64. Every backend computes the same bits, because the order of operations is part
of the contract. With the sum of a vector in eight lanes,

    sum8(v) = ((s_0 + s_1) + (s_2 + s_3)) + ((s_4 + s_5) + (s_6 + s_7)),   s_l = Σ_{k mod 8 = l} v_k

added in ascending k, products rounded before they are added, numbers widened to float64 first,

    inner_product   score = sum8(x·y)
    cosine          score = sum8(x·y) · (a(x) · a(y)),   a(v) = 1 / √sum8(v·v), or 0 for a zero row
    l2              score = −sum8((x − y)·(x − y))

and then the column's bias is added where there is one. Items are ordered by (−score, index). Low
precision may select candidates, and never decides.

A score that is NaN is never retrieved. A query and an item of equal groups exclude each other;
a group of −1 equals nothing.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

METRICS = ("inner_product", "cosine", "l2")
FIRST_PASSES = ("auto", "full", "int8")  # what selects candidates: the given numbers, or bytes


class TopkInputs(NamedTuple):
    """All queries, and one chunk of the gallery."""

    queries: Tensor  # (N, D)
    gallery: Tensor  # (M, D), in the dtype of the queries
    k: int  # at least 1; may be above M
    metric: str  # one of METRICS
    offset: int  # the number of the chunk's first row in the whole gallery
    bias: Tensor | None  # (M,) float64
    query_group: Tensor | None  # (N,) int64
    gallery_group: Tensor | None  # (M,) int64
    excluded: Tensor | None  # (N,) int64: one item, by its number in the whole gallery; −1: none
    first_pass: str = "auto"  # one of FIRST_PASSES; the result does not depend on it
    prepared: Tensor | None = None  # uint8: what the backend's `prepare` made of this chunk


class Found(NamedTuple):
    """The best of each query, in order; short rows end in (−inf, −1)."""

    scores: Tensor  # (N, k) float64
    indices: Tensor  # (N, k) int64, in the whole gallery
