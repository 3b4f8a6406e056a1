"""topk equals its contract to the bit, whatever computes it and however it is cut."""

from __future__ import annotations

import math
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from retrieval_oracle import oracle_topk
from torch import Tensor

from mmcore.backends import workspace
from mmcore.backends.reference import scores as reference_scores
from mmcore.backends.reference import topk as reference_topk
from mmcore.backends.retrieval import METRICS, Found, TopkInputs
from mmcore.retrieval import TopK, galleries, merge, topk

pytestmark = pytest.mark.op

KINDS = ("random", "clustered", "duplicates", "all_equal", "special", "huge_and_tiny")


def features(kind: str, rows: int, width: int, dtype: torch.dtype) -> Tensor:
    x = torch.randn(rows, width, dtype=torch.float64)
    if kind == "clustered":
        x = x[: 1 + rows // 20].repeat(20, 1)[:rows] + 1e-4 * x
    if kind == "all_equal":
        x = x[:1].expand(rows, -1)
    if kind == "huge_and_tiny":
        x = x * 10.0 ** torch.linspace(-7, 4, rows, dtype=torch.float64)[:, None]
    x = x.to(dtype)
    if kind == "duplicates":
        x[rows // 3 : rows // 2] = x[1].clone()
    if kind == "special":
        for i, number in enumerate((math.nan, math.inf, -math.inf, 0.0, -0.0)):
            x[i::17] = torch.where(torch.rand(x[i::17].shape) < 0.5, number, x[i::17])
        x[3::40], x[rows - 1] = 0, math.nan
    return x


def check(found: TopK, expected: Found) -> None:
    """The same indices and the same bits of float64 scores; NaN for queries with NaN."""
    assert torch.equal(found.indices, expected.indices)
    is_nan = found.scores.isnan()
    assert (found.indices[is_nan] == -1).all()
    found_bits, expected_bits = (
        scores.masked_fill(is_nan, -math.inf).view(torch.int64)
        for scores in (found.scores, expected.scores)
    )
    assert torch.equal(found_bits, expected_bits)


def exact(*arguments: Any, **options: Any) -> TopK:
    return topk(*arguments, score_dtype="float64", **options)


def oracle(queries: Tensor, gallery: Tensor, k: int, metric: str, **parts: Any) -> Found:
    names = ("bias", "query_group", "gallery_group", "excluded")
    rest = [parts.get(name) for name in names]
    return oracle_topk(TopkInputs(queries, gallery, k, metric, 0, *rest))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("k", [1, 10, 70])
def test_bits(backend: str, metric: str, kind: str, dtype: torch.dtype, k: int) -> None:
    """Catches another order of a sum, another order of ties, and a bound that loses an item."""
    queries, gallery = features(kind, 21, 33, dtype), features(kind, 207, 33, dtype)
    queries[:9] = gallery[:9]
    check(exact(queries, gallery, k, metric=metric), oracle(queries, gallery, k, metric))


@pytest.mark.parametrize("shape", [(1, 1), (1, 100), (7, 8), (9, 500), (64, 65)])
@pytest.mark.parametrize("metric", METRICS)
def test_sizes(backend: str, shape: tuple[int, int], metric: str) -> None:
    """Catches the tail of a row, of a tile or of a chunk; k is beyond some galleries."""
    rows, width = shape
    queries, gallery = torch.randn(rows, width), torch.randn(rows * 2 + 1, width)
    check(exact(queries, gallery, 20, metric=metric), oracle(queries, gallery, 20, metric))


@pytest.mark.filterwarnings("ignore:overflow encountered")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", METRICS)
def test_float64(kind: str, metric: str) -> None:
    """Catches bounds that overflow or underflow in float64, which the reference alone serves."""
    queries, gallery = features(kind, 9, 12, torch.float64), features(kind, 70, 12, torch.float64)
    for factor in (1.0, 1e170, 1e-170):
        x, y = queries * factor, gallery * factor
        with_oracle = oracle(x, y, 11, metric)
        check(exact(x, y, 11, metric=metric), with_oracle)


@pytest.mark.parametrize("metric", METRICS)
def test_everything_at_once(backend: str, metric: str) -> None:
    """Catches a bias, a group or an exclusion that the first pass or the merge forgets."""
    queries = features("duplicates", 40, 17, torch.float32)
    gallery = queries.repeat(5, 1)[:163]
    bias = torch.randn(163, dtype=torch.float64)
    bias[[3, 50, 100]] = torch.tensor([math.nan, math.inf, -math.inf], dtype=torch.float64)
    groups = torch.randint(-1, 3, (40,)), torch.randint(-1, 3, (163,), dtype=torch.int32)
    found = exact(
        queries, gallery, 15, metric=metric, gallery_bias=bias, query_group=groups[0],
        gallery_group=groups[1],
    )  # fmt: skip
    expected = oracle(
        queries, gallery, 15, metric, bias=bias, query_group=groups[0],
        gallery_group=groups[1].long(),
    )  # fmt: skip
    check(found, expected)
    found = exact(queries, queries, 45, metric=metric, exclude_self=True)
    check(found, oracle(queries, queries, 45, metric, excluded=torch.arange(40)))


def test_k_and_batches_change_nothing(backend: str) -> None:
    """Catches what other libraries do: neighbours that change with k, scores with the batch."""
    queries, gallery = torch.randn(33, 40), features("duplicates", 300, 40, torch.float32)
    whole = exact(queries, gallery, 64)
    for k in (1, 3, 16, 17):
        few = exact(queries, gallery, k)
        assert torch.equal(few.indices, whole.indices[:, :k])
        assert torch.equal(few.scores, whole.scores[:, :k])
    for size in (1, 2, 16, 17):
        parts = [exact(part, gallery, 64) for part in queries[:20].split(size)]
        assert torch.equal(torch.cat([part.indices for part in parts]), whole.indices[:20])
        assert torch.equal(torch.cat([part.scores for part in parts]), whole.scores[:20])


def test_equal_rows_have_equal_scores_in_ascending_order(backend: str) -> None:
    """Catches ties in another order than by index, and equal rows whose scores differ."""
    queries, gallery = torch.randn(5, 77), torch.randn(200, 77)
    equal = torch.tensor([5, 190, 17, 64, 65, 128])
    gallery[equal] = queries[0]
    found = exact(queries[:1], gallery, 8)
    assert found.indices[0, :6].tolist() == sorted(equal.tolist())
    assert len(set(found.scores[0, :6].tolist())) == 1


def test_a_row_finds_its_duplicates_but_not_itself(backend: str) -> None:
    """Catches exclusion by position: the first result is dropped, whatever it is."""
    rows = torch.randn(40, 9)
    rows[[10, 25]] = rows[30].clone()
    found = topk(rows, rows, 2, metric="l2", exclude_self=True).indices
    assert not (found == torch.arange(40)[:, None]).any()
    assert found[[10, 25, 30]].tolist() == [[25, 30], [10, 30], [10, 25]]


def test_threads_and_first_passes_change_nothing(backend: str, threads: None) -> None:
    """Catches a result that depends on how the gallery is cut, or on what selects."""
    queries = features("clustered", 30, 64, torch.float32)
    gallery = features("clustered", 1000, 64, torch.float32)
    expected = oracle(queries, gallery, 10, "cosine")
    for count, first_pass in ((1, "auto"), (2, "full"), (3, "int8"), (5, "auto")):
        torch.set_num_threads(count)
        found = exact(queries, gallery, 10, metric="cosine", first_pass=first_pass)
        check(found, expected)


def test_chunks_change_nothing(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches an offset that is lost between chunks, and an item of an earlier one that is."""
    monkeypatch.setattr(galleries, "FEWEST_ROWS", 1)
    queries, gallery = torch.randn(9, 31), features("duplicates", 400, 31, torch.float32)
    expected = oracle(queries, gallery, 12, "l2")
    for sizes in ([400], [1, 399], [150, 0, 250], [13] * 30 + [10]):
        check(exact(queries, iter(gallery.split(sizes)), 12, metric="l2"), expected)
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        parts = [
            exact(queries, gallery[first : first + size], 12, metric="l2", first_index=first)
            for first, size in zip(firsts, sizes, strict=True)
        ]
        check(merge(parts[::-1], 12), expected)


def test_scores_are_rounded_once(backend: str) -> None:
    """Catches scores of a product in float32, which are not the float64 ones as rounded."""
    queries, gallery = torch.randn(9, 300), torch.randn(50, 300)
    found = topk(queries, gallery, 50)
    assert found.scores.dtype == torch.float32
    assert torch.equal(found.scores, exact(queries, gallery, 50).scores.float())


def test_what_is_not_found(backend: str) -> None:
    """Catches garbage, zeros or −3.4e38 where there is nothing, and NaN among what is found."""
    queries, gallery = torch.randn(3, 8), torch.randn(4, 8)
    queries[1, 3], gallery[2, 0] = math.nan, math.nan
    scores, indices = topk(queries, gallery, 6)
    assert (indices[:, 3:] == -1).all()
    assert (scores[::2, 3:] == -math.inf).all()
    assert scores[1].isnan().all()
    assert (indices[1] == -1).all()
    assert sorted(indices[0, :3].tolist()) == [0, 1, 3]
    for empty in (gallery[:0], [], iter([gallery[:0]])):
        scores, indices = topk(queries, empty, 2)
        assert (indices == -1).all()
        assert (scores[::2] == -math.inf).all()
        assert scores[1].isnan().all()
    assert topk(queries[:0], gallery, 2).indices.shape == (0, 2)


def test_a_bias_of_minus_infinity_is_a_score(backend: str) -> None:
    """Catches an item of score −∞ that is taken for none: it comes before the padding."""
    bias = torch.tensor([-math.inf, 0.0, -math.inf])
    scores, indices = topk(torch.ones(1, 4), torch.ones(3, 4), 5, gallery_bias=bias)
    assert indices.tolist() == [[1, 0, 2, -1, -1]]
    assert scores.tolist() == [[4.0] + [-math.inf] * 4]


def test_a_collapsed_gallery_is_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a reference that lists all pairs where the bounds exclude none."""
    pairs = []
    whole = reference_scores.pair_scores

    def counted(*arguments: Any) -> Tensor:
        pairs.append(arguments[-1].shape[0])
        return whole(*arguments)

    monkeypatch.setattr(reference_topk.scores, "pair_scores", counted)
    queries, gallery = torch.ones(50, 4), torch.ones(9000, 4)
    limit = 64 * 4096 * 20
    with workspace.workspace(limit):
        found = topk(queries, gallery, 3, backend="reference")
    assert (found.indices == torch.arange(3)).all()
    assert max(pairs) <= limit / 64
    assert sum(pairs) == 50 * 9000


numbers = st.sampled_from([0.0, 1.0, -1.0, 0.5, 3.0, 1e-3, 2.0**-140, math.inf, math.nan])


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_random_calls(data: st.DataObject) -> None:
    """Catches a combination that no test above thought of: few different numbers, many ties."""
    draw = data.draw
    n, m, d = draw(st.integers(0, 9)), draw(st.integers(0, 60)), draw(st.integers(1, 20))
    k, metric = draw(st.integers(1, 30)), draw(st.sampled_from(METRICS))
    seed = draw(st.integers(0, 2**16))
    pool = torch.tensor(draw(st.lists(numbers, min_size=1, max_size=4)))
    generator = torch.Generator().manual_seed(seed)
    queries, gallery = (
        pool[torch.randint(len(pool), (rows, d), generator=generator)] for rows in (n, m)
    )
    groups = [torch.randint(-1, 2, (rows,), generator=generator) for rows in (n, m)]
    names = {"query_group": groups[0], "gallery_group": groups[1]} if draw(st.booleans()) else {}
    size = draw(st.integers(1, 61))
    with mock.patch.object(galleries, "FEWEST_ROWS", 1):
        found = exact(queries, iter(gallery.split(size)), k, metric=metric, **names)
    check(found, oracle(queries, gallery, k, metric, **names))
