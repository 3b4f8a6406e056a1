"""Queries against documents, and documents and queries against each other, in one denominator."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional import operands
from mmcore.functional.local_batch import warn_of_local_batch
from mmcore.functional.ranks import ProcessGroup, Ranks, as_ranks, tells_ranks
from mmcore.functional.reductions import as_loss, mean_of_rows
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity
from mmcore.functional.temperature import scale_not_temperature
from mmcore.ops.define import without_autocast

DIRECTIONS = ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")
PARTITIONS = ("joint", "per_direction")
# Of one kind alone: none of them is the positive.
WITHOUT_POSITIVE = ("query_to_query", "doc_to_doc")
HARDNESS = ("in_batch_negatives", "hard_negatives", "all_negatives")


@scale_not_temperature
@tells_ranks
def multiple_negatives_ranking_loss(
    query: Tensor,
    documents: Sequence[Tensor],
    scale: float | Tensor,
    *,
    directions: Sequence[str] = ("query_to_doc",),
    partition: str = "joint",
    hardness: str | None = None,
    hardness_strength: float = 0.0,
    process_group: ProcessGroup = None,
    gradients: str = "mean",
    exchange: str = "auto",
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

    With `hardness` the logits of some negatives are larger by how similar they are, so that hard
    ones weigh more; the gradient does not run through what is added::

        logits["query_to_doc"] += hardness_strength * (query @ every.T).detach() * penalised

    Args:
        query: (N, D), any floating-point dtype; rows of unit length.
        documents: the positives and then any number of hard negatives, (N, D) each: row i of all is
            of query i.
        scale: a number or a one-element tensor, at least 0: the inverse temperature.
        directions: which of ``"query_to_doc"`` (needed), ``"query_to_query"``, ``"doc_to_query"``
            and ``"doc_to_doc"``.
        partition: ``"joint"``, one denominator over all directions, or ``"per_direction"``, a
            denominator each, for the directions between queries and documents.
        hardness: whose logits from query to document are raised: ``"in_batch_negatives"``, the
            documents of other queries, hard negatives among them; ``"hard_negatives"``, those of
            the query itself; ``"all_negatives"``, both; or None.
        hardness_strength: α ≥ 0, by how much.
        process_group: None, or whose processes hold the other rows: "world", a process group of
            torch.distributed or a DeviceMesh of one dimension. See docs/several-processes.md.
        gradients: "mean" where they are averaged over processes later, as DDP does; or "sum".
        exchange: how rows travel between processes: "auto", "gather" or "ring".
        backend: see `mmcore.backend`.

    Returns:
        0-D, float32 (float64 for float64 inputs).

    Raises:
        TypeError, ValueError: as `softmax_similarity`; documents are none or differ in shape; a
            direction is unknown, given twice, has no positive of its own where each must, or
            ``"query_to_doc"`` is missing; a `hardness_strength` below 0, or one without `hardness`.

    Memory:
        As `softmax_similarity`, and the documents once more, one after the other. The directions
        query to document and back are one pass, with `hardness` two. Hard negatives that are
        raised otherwise than documents of other queries are multiplied in float64.

    Reference:
        sentence-transformers' ``MultipleNegativesRankingLoss``; Henderson et al., Efficient Natural
        Language Response Suggestion for Smart Reply, 2017, https://arxiv.org/abs/1705.00652. Lan et
        al., LLaVE: Large Language and Vision Embedding Models with Hardness-Weighted Contrastive
        Learning, 2025, https://arxiv.org/abs/2503.04812 (`hardness`).

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
    ranks = as_ranks(process_group, gradients, exchange)
    warn_of_local_batch("multiple_negatives_ranking_loss", process_group)
    query, documents = _checked_sides(query, documents, ranks)
    strength = _checked_options(directions, partition, hardness, hardness_strength)
    check.check_scale("scale", scale)
    scale = check.as_scalar("scale", scale, query)
    every = _joined(documents)
    matrix = _Matrices(query, every, ranks, backend)
    has_way_back = "doc_to_query" in directions
    if hardness is not None and strength:
        forth, positive = _weighted(query, documents, every, scale, hardness, strength, matrix)
        sums = [forth]
        if has_way_back:
            sums.append(matrix.row_lse(documents[0], query, scale))
    else:
        plain = matrix.statistics(query, every, scale, columns=has_way_back, **matrix.target())
        sums, positive = [plain.row_lse], plain.row_pos
        if has_way_back:
            sums.append(plain.col_lse[: query.shape[0]])
    if "query_to_query" in directions:
        sums.append(matrix.row_lse_of_others(query, query, scale))
    if "doc_to_doc" in directions:
        sums.append(matrix.row_lse_of_others(documents[0], every, scale))
    stacked = torch.stack(sums)
    log_z = stacked.logsumexp(0) if partition == "joint" else stacked.mean(0)
    return as_loss(mean_of_rows(log_z - positive, ranks), query)


class _Matrices:
    """Similarities of rows of the queries: which query each row is of, on which ranks."""

    def __init__(
        self, query: Tensor, every: Tensor, ranks: Ranks | None, backend: str | None
    ) -> None:
        self.itself = torch.arange(query.shape[0], device=query.device)
        self.ranks, self.backend, self.positive = ranks, backend, None
        if ranks is not None:
            rows, documents = ranks.rows(
                "multiple_negatives_ranking_loss", query=query, documents=every
            )
            self.positive = self.itself + documents.offset(query.device)
            self.itself = self.itself + rows.offset(query.device)

    def statistics(self, x: Tensor, y: Tensor, scale: Tensor, **options: Any) -> SoftmaxStatistics:
        return softmax_similarity(
            x, y, scale, process_group=self.ranks, backend=self.backend, **options
        )

    def row_lse(self, x: Tensor, y: Tensor, scale: Tensor, **pairs: Any) -> Tensor:
        return self.statistics(x, y, scale, columns=False, **pairs).row_lse

    def target(self) -> dict[str, Tensor]:
        """Of queries among all documents; the diagonal of this process needs none."""
        return {} if self.positive is None else {"target": self.positive}

    def row_lse_of_others(self, x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
        """Of pairs of different queries alone: rows of the query itself are no negatives."""
        none = torch.full(x.shape[:1], -1, device=x.device)
        # Over ranks by labels: half of the matrix is enough then where y is x.
        is_half = y is x and self.ranks is not None
        pairs = {"row_label" if is_half else "target": none}
        return self.row_lse(x, y, scale, **pairs, **self.groups(x, y))

    def groups(self, x: Tensor, y: Tensor) -> dict[str, Tensor | None]:
        """Which query a row is of; y holds rows of all of them, any number of times."""
        # One vector for both sides where y is x: half of the matrix is enough then.
        times = 1 if y is x else len(y) // max(1, len(x))
        return {
            "row_group": self.itself,
            "col_group": self.itself if y is x else self.itself.repeat(times),
        }


def _weighted(
    query: Tensor,
    documents: Sequence[Tensor],
    every: Tensor,
    scale: Tensor,
    hardness: str,
    strength: float,
    matrix: _Matrices,
) -> tuple[Tensor, Tensor]:
    """Log-sum-exp of query to document with raised negatives, and the logits of the positives."""
    # Negatives of the query itself that are not raised as those of others are.
    apart = documents[1:] if hardness != "all_negatives" else ()
    raises_others = hardness != "hard_negatives"
    rows, columns, at = query, every, scale
    if raises_others:
        # At scale + α the values are right. What is detached there, α·cos, has no gradient.
        at = scale.double() + strength
        share = (scale / at).detach()
        rows, columns = (_ScaledGradient.apply(side, share) for side in (query, every))
    groups: dict[str, Any] = matrix.groups(query, every) if apart else {}
    negatives = matrix.statistics(
        rows, columns, at, denominator="negatives", columns=False, **matrix.target(), **groups
    )
    positive = negatives.row_pos
    if raises_others:
        positive = positive - strength * (positive / at).detach()
    terms = [negatives.row_lse, positive]
    for document in apart:
        cosine = (query.double() * document.double()).sum(1)
        terms.append(scale * cosine + (0 if raises_others else strength * cosine.detach()))
    return torch.stack(terms).logsumexp(0), positive


class _ScaledGradient(torch.autograd.Function):
    """Its input, whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, factor: Tensor) -> Tensor:
        ctx.save_for_backward(factor)
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (factor,) = ctx.saved_tensors
        return (grad * factor).to(grad.dtype), None


def _joined(documents: Sequence[Tensor]) -> Tensor:
    if len(documents) == 1:
        return documents[0]
    with without_autocast(
        documents[0].device.type
    ):  # which takes no rows in its other 16-bit dtype
        return torch.cat(list(documents))


def _checked_sides(
    query: Tensor, documents: Sequence[Tensor], ranks: Ranks | None
) -> tuple[Tensor, Sequence[Tensor]]:
    if isinstance(documents, Tensor):
        raise TypeError("documents must be a sequence of tensors, got one Tensor")
    if not documents:
        raise ValueError("documents must begin with the positives, got none")
    query, *documents = operands.multiplied(query, *documents)
    check.check_matrix("query", query)
    if ranks is None:
        check.check_rows("query", query)
    for i, value in enumerate(documents):
        name = f"documents[{i}]"
        check.check_matrix(name, value)
        if value.shape != query.shape:
            raise ValueError(
                f"{name} must have shape {tuple(query.shape)} to match query, "
                f"got {tuple(value.shape)}"
            )
        check.check_matches(name, value, query, "query")
    return query, documents


def _checked_options(
    directions: Sequence[str], partition: str, hardness: str | None, strength: float
) -> float:
    """The strength of the hardness."""
    check.check_choice("partition", partition, PARTITIONS)
    _check_directions(directions, partition)
    return _checked_strength(hardness, strength)


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


def _checked_strength(hardness: str | None, strength: float) -> float:
    strength = check.check_not_negative("hardness_strength", strength)
    if hardness is not None:
        check.check_choice("hardness", hardness, HARDNESS)
    elif strength:
        raise ValueError(
            f"hardness must be given where hardness_strength is above 0, got {strength}"
        )
    return strength
