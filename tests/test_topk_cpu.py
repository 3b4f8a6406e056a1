"""The CPU kernels of top-k search: the bits of the contract, whatever the first pass and threads.

Every case is compared with retrieval_oracle.py, which computes all scores and sorts them.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from machines import DTYPES, by_tier
from retrieval_oracle import oracle_topk

from mmcore.backends import cpu
from mmcore.backends.retrieval import FIRST_PASSES, METRICS

if cpu._C is None:
    pytest.skip("the compiled kernels are not built", allow_module_level=True)

from topk_cases import BLOCK, HARD, check, check_passes, inputs, unit_rows

from mmcore.backends.cpu import topk

pytestmark = pytest.mark.op


@pytest.mark.parametrize("queries", [3, 40])
@pytest.mark.parametrize("width", [1, 7, 8, 9, 31, 64, 1025])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("metric", METRICS)
def test_scores_and_items(
    compiled: str, metric: str, dtype: torch.dtype, width: int, queries: int
) -> None:
    """Catches a bound that is too narrow, a tail of the width or of a block that is left out, and
    a score that is added in another order.
    """
    x, y = torch.randn(queries, width), torch.randn(BLOCK, width)
    y[1::50], x[1] = y[0], y[0]  # ties, which the index decides
    x[2] = y[3] = 0
    y[5] *= 3
    check_passes(inputs(x.to(dtype), y.to(dtype), metric=metric))


@pytest.mark.parametrize("k", [1, 10, 100, BLOCK, 1000])
@pytest.mark.parametrize("queries", [2, 17])
def test_as_many_items_as_wanted(compiled: str, queries: int, k: int) -> None:
    """Catches bags that are too small for k, and rows that are not padded where k is above M."""
    found = check(inputs(unit_rows(queries, 20), unit_rows(BLOCK, 20), k))
    assert (found.indices[:, min(k, BLOCK) :] == -1).all()
    assert (found.scores[:, min(k, BLOCK) :] == -torch.inf).all()


@pytest.mark.parametrize(("queries", "items"), [(0, 5), (5, 0), (0, 0), (1, 1)])
def test_empty_sides(compiled: str, queries: int, items: int) -> None:
    """Catches a loop or an allocation that expects a row."""
    check_passes(inputs(torch.randn(queries, 4), torch.randn(items, 4), 3))


@pytest.mark.parametrize("kind", HARD)
@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("queries", [5, 30])
def test_hard_inputs(compiled: str, metric: str, kind: str, queries: int) -> None:
    """Catches a first pass that decides what only float64 scores may decide."""
    x, y = unit_rows(queries, 24), unit_rows(2 * BLOCK, 24)
    HARD[kind](x, y)
    check_passes(inputs(x, y, 5, metric=metric))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("first_pass", FIRST_PASSES)
@pytest.mark.parametrize("queries", [5, 30])
def test_bias_and_exclusions(compiled: str, metric: str, first_pass: str, queries: int) -> None:
    """Catches a bias that the bound forgets, a threshold that counts excluded items, an excluded
    item looked up without the chunk's offset, and −1 as a group.
    """
    x, y = unit_rows(queries, 24), unit_rows(2 * BLOCK, 24)
    y[:queries] = x
    bias = torch.randn(len(y), dtype=torch.float64)
    bias[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e300, -1e300])
    groups = [torch.randint(-1, 3, (len(z),)) for z in (x, y)]
    excluded = 100 + torch.arange(queries)
    excluded[2] = -1
    for options in (
        {"bias": bias},
        {"query_group": groups[0], "gallery_group": groups[1], "excluded": excluded},
        {"bias": bias.clamp(-1, 1), "excluded": excluded},
    ):
        call = inputs(x, y, 7, metric=metric, offset=100, first_pass=first_pass, **options)
        check(call)
        prepared = topk.prepare(y, metric)
        check(call._replace(prepared=prepared), expected=oracle_topk(call))


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("first_pass", FIRST_PASSES)
@pytest.mark.parametrize("queries", [4, 40])
def test_chunks_change_nothing(compiled: str, metric: str, first_pass: str, queries: int) -> None:
    """Catches thresholds from earlier chunks that are too high, and items that are forgotten."""
    x, y = torch.randn(queries, 16), torch.randn(3 * BLOCK, 16)
    y[BLOCK : 2 * BLOCK : 3] = y[0]
    whole = inputs(x, y, 12, metric=metric, first_pass=first_pass)
    expected = oracle_topk(whole)
    for cuts in ((0, 5, 3 * BLOCK), (0, 2 * BLOCK, 2 * BLOCK, 3 * BLOCK)):
        best = None
        for begin, end in itertools.pairwise(cuts):
            chunk = whole._replace(gallery=y[begin:end], offset=begin)
            best = topk.search(chunk, best)
        assert best is not None
        assert torch.equal(best.indices, expected.indices)
        assert torch.equal(best.scores, expected.scores)


@pytest.mark.parametrize("first_pass", FIRST_PASSES)
@pytest.mark.parametrize("queries", [3, 50, 700])
def test_threads_change_nothing(
    compiled: str, threads: None, queries: int, first_pass: str
) -> None:
    """Catches a part of the gallery or of the queries that no thread takes, or two."""
    x, y = unit_rows(queries, 8), unit_rows(5 * BLOCK, 8)
    y[::4] = y[0]
    call = inputs(x, y, 9, first_pass=first_pass)
    expected = oracle_topk(call)
    for count in (1, 2, 3):
        torch.set_num_threads(count)
        check(call, expected=expected)
        few = call._replace(gallery=y[:20])
        check(few)


def test_strides(compiled: str) -> None:
    """Catches rows that are read as if they were dense."""
    x, y = torch.randn(20, 30)[:, 3:25], torch.randn(2 * BLOCK, 44)[::2, ::2]
    check_passes(inputs(x, y, 5))
    check_passes(inputs(x, y[:1].expand(BLOCK, 22), 5))


def test_equal_rows_take_linear_time(best: str) -> None:
    """Catches bags that grow, or that are settled again and again, where all bounds overlap: the
    oracle's answer is known, and quadratic work would take minutes.
    """
    y = unit_rows(1, 32).expand(20_000, 32)
    for queries in (8, 100):
        found = topk.search(inputs(y[:queries], y, 10), None)
        assert torch.equal(found.indices, torch.arange(10).expand(queries, 10))


@pytest.fixture
def flushed_denormals() -> Iterator[None]:
    torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def test_flushed_denormals_count(compiled: str, flushed_denormals: None) -> None:
    """Catches exact scores that depend on the caller's mode of the processor."""
    torch.set_flush_denormal(False)
    x, y = torch.randn(20, 9) * 1e-40, torch.randn(BLOCK, 9)
    expected = oracle_topk(inputs(x, y))
    torch.set_flush_denormal(True)
    check(inputs(x, y), expected=expected)


WORDS = st.sampled_from([0.0, 1.0, -1.0, 0.5, 1e-3, 3.0, 1e20, 1e-25, torch.inf, torch.nan])


@settings(max_examples=by_tier(25, 300), deadline=None)
@given(data=st.data())
def test_random_calls(data: st.DataObject) -> None:
    """Catches a combination of sizes, values and options that no other test has."""
    draw = data.draw
    n, m, width = draw(st.integers(1, 30)), draw(st.integers(1, 400)), draw(st.integers(1, 20))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6)))
    few = torch.tensor(draw(st.lists(WORDS, min_size=1, max_size=4)))
    x, y = (
        torch.where(
            torch.rand(rows, width, generator=generator) < draw(st.sampled_from([0, 0.02, 0.9])),
            few[torch.randint(0, len(few), (rows, width), generator=generator)],
            torch.randn(rows, width, generator=generator),
        )
        for rows in (n, m)
    )
    call = inputs(
        x.to(dtype := draw(st.sampled_from(DTYPES))),
        y.to(dtype),
        draw(st.integers(1, 40)),
        metric=draw(st.sampled_from(METRICS)),
        offset=draw(st.integers(0, 50)),
        bias=draw(st.sampled_from([None, torch.randn(m, generator=generator).double()])),
        excluded=draw(
            st.sampled_from([None, torch.randint(-1, m + 50, (n,), generator=generator)])
        ),
    )
    isa = draw(st.sampled_from(cpu._C.instruction_sets()))
    before = cpu._C.instruction_set()
    cpu._C.select_instruction_set(isa)
    try:
        check_passes(call)
    finally:
        cpu._C.select_instruction_set(before)
