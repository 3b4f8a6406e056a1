"""A gallery whose shards several processes hold is searched as the whole is, to the bit."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ranks import on_ranks
from torch import Tensor

from mmcore.retrieval import TopK, topk

QUERIES, ITEMS, WIDTH, K = 11, 90, 12, 7
SHARES = {
    1: ([11], [90]),
    2: ([11, 0], [40, 50]),
    3: ([2, 4, 5], [0, 89, 1]),
}


def inputs() -> tuple[Tensor, Tensor]:
    queries, gallery = torch.randn(QUERIES, WIDTH), torch.randn(ITEMS, WIDTH)
    gallery[60:80] = gallery[3]  # ties between ranks
    queries[4, 0] = torch.nan
    return queries, gallery


def of_ranks(size: int, search: Any) -> TopK:
    """What the ranks found, one after the other."""
    parts = on_ranks(size, search)
    return TopK(torch.cat([part.scores for part in parts]), torch.cat([p.indices for p in parts]))


def check_equal(found: TopK, expected: TopK) -> None:
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.scores.nan_to_num(7.5), expected.scores.nan_to_num(7.5))


@pytest.mark.parametrize("size", SHARES)
@pytest.mark.parametrize("metric", ["inner_product", "l2"])
def test_shards(size: int, metric: str) -> None:
    """Catches local row numbers, ties in the order of arrival, and a rank without rows."""
    queries, gallery = inputs()
    own, shards = queries.split(SHARES[size][0]), gallery.split(SHARES[size][1])

    def search(rank: int) -> TopK:
        return topk(own[rank], shards[rank], K, metric=metric, process_group="world")

    check_equal(of_ranks(size, search), topk(queries, gallery, K, metric=metric))


def test_chunks_biases_and_groups() -> None:
    """Catches a bias of another shard, groups that are compared within a rank, and a count of rows
    that is needed before an iterable has been read.
    """
    queries, gallery = inputs()
    bias, group, own_group = torch.randn(ITEMS), torch.arange(ITEMS) % 3, torch.arange(QUERIES) % 3
    shares, shards = SHARES[3]

    def search(rank: int) -> TopK:
        return topk(
            queries.split(shares)[rank], iter(gallery.split(shards)[rank].split(20)), K,
            gallery_bias=bias.split(shards)[rank], query_group=own_group.split(shares)[rank],
            gallery_group=group.split(shards)[rank], first_index=1000, process_group="world",
        )  # fmt: skip

    expected = topk(
        queries, gallery, K, gallery_bias=bias, query_group=own_group, gallery_group=group,
        first_index=1000,
    )  # fmt: skip
    check_equal(of_ranks(3, search), expected)


def test_exclude_self() -> None:
    """Catches row i of one rank that is excluded for query i of another."""
    queries, _ = inputs()
    own = queries.split([2, 4, 5])

    def search(rank: int) -> TopK:
        return topk(own[rank], own[rank], K, exclude_self=True, process_group="world")

    check_equal(of_ranks(3, search), topk(queries, queries, K, exclude_self=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 3}, "k must be alike on all ranks .* rank 1 has 3, rank 0 has 7"),
        ({"metric": "l2"}, "metric must be alike on all ranks"),
        ({"k": 0}, "k must be at least 1, got 0"),
    ],
)
def test_ranks_that_differ(change: dict[str, Any], message: str) -> None:
    """Catches a rank that waits for ever, or merges what does not belong together."""
    queries, gallery = inputs()

    def search(rank: int) -> TopK:
        options: dict[str, Any] = {"k": K} | (change if rank == 1 else {})
        return topk(queries, gallery, process_group="world", **options)

    with pytest.raises(ValueError, match=message):
        on_ranks(2, search)


def test_a_rank_that_fails_while_it_reads() -> None:
    """Catches the others waiting for a rank whose file or chunk is at fault."""
    queries, gallery = inputs()
    errors: dict[int, BaseException] = {}

    def search(rank: int) -> None:
        chunks = [gallery[:10], gallery[:10, :5]] if rank == 1 else [gallery]
        try:
            topk(queries, chunks, K, process_group="world")
        except (ValueError, RuntimeError) as error:
            errors[rank] = error

    on_ranks(2, search)
    assert "chunk 1 of gallery, from row 10, must have 12 columns" in str(errors[1])
    assert "rank 1 of process group" in str(errors[0])
    assert "failed in its search" in str(errors[0])
