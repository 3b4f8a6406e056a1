"""Gradient caching in two processes, under DDP and FSDP2: gradients, and how often they move.

The gradients of each case are those of plain towers, averaged by hand.
"""

from __future__ import annotations

import time
from typing import Any

import caching_processes
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing
from caching_ranks import PROCESSES, SECONDS

pytestmark = pytest.mark.skipif(not dist.is_gloo_available(), reason="torch was built without gloo")


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The results of both processes, which run once for all tests."""
    folder = tmp_path_factory.mktemp("processes")
    processes = torch.multiprocessing.start_processes(
        caching_processes.run, (str(folder),), PROCESSES, join=False, start_method="spawn"
    )
    assert processes is not None
    end = time.monotonic() + 2 * SECONDS
    try:
        while not processes.join(timeout=1):
            assert time.monotonic() < end, "the processes hang"
    finally:
        for process in processes.processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(PROCESSES)]


def check(ranks: list[dict[str, Any]], name: str, exchanges: object) -> None:
    for rank in ranks:
        assert rank[name]["error"] <= 1e-12
        assert rank[name]["exchanges"] == exchanges


@pytest.mark.parametrize("rows", ["uneven", "few", "none"])
@pytest.mark.parametrize("how", ["cached", "caching"])
def test_ddp_exchanges_once_a_step(ranks: list[dict[str, Any]], how: str, rows: str) -> None:
    """Catches an exchange for every chunk (sentence-transformers #4027), gradients of the last
    chunk alone, and a hang where processes have different numbers of chunks, or one has no rows.
    """
    check(ranks, f"ddp {how} {rows}", [2, 2])


@pytest.mark.parametrize("rows", ["uneven", "few", "none"])
@pytest.mark.parametrize("how", ["cached", "caching"])
def test_fsdp_exchanges_once_a_step(ranks: list[dict[str, Any]], how: str, rows: str) -> None:
    """Catches a hang where one process gathers weights for fewer chunks than another, and gradients
    of the rows that stand in for missing ones. Two steps, two towers, three groups of weights.
    """
    check(ranks, f"fsdp {how} {rows}", [12])


def test_buckets_that_are_views_of_gradients(ranks: list[dict[str, Any]]) -> None:
    """Catches gradients of earlier chunks that DDP's views of buckets lose."""
    check(ranks, "ddp views", [2, 2])


@pytest.mark.parametrize("how", ["cached", "caching"])
def test_a_shared_tower_exchanges_once(ranks: list[dict[str, Any]], how: str) -> None:
    """Catches an exchange for each call of a tower, and one that waits for a call outside of the
    loss, so that none comes.
    """
    check(ranks, f"ddp shared {how}", 1)


def test_a_shared_tower_under_fsdp(ranks: list[dict[str, Any]]) -> None:
    """Catches the same under FSDP2, whose three groups of weights are exchanged once each."""
    check(ranks, "fsdp shared", [3])


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_frozen_layers(ranks: list[dict[str, Any]], wrapper: str) -> None:
    """Catches a backward of what needs no gradient (sentence-transformers #4039)."""
    check(ranks, f"{wrapper} frozen", None)


def test_a_tower_after_itself(ranks: list[dict[str, Any]]) -> None:
    """Catches an exchange before the call that back-propagates last, and lost input gradients."""
    check(ranks, "ddp chained", 1)


def test_two_towers_in_one_wrapper(ranks: list[dict[str, Any]]) -> None:
    """Catches gradients of the tower that is not in the exchanging chunk."""
    check(ranks, "ddp in one wrapper", 1)


def test_towers_that_are_methods(ranks: list[dict[str, Any]]) -> None:
    """Catches a tower that waits for another's wrapper because one object has both."""
    check(ranks, "ddp of one object", [1, 1])
    check(ranks, "fsdp methods", [6])


def test_accumulation_over_batches(ranks: list[dict[str, Any]]) -> None:
    """Catches an exchange inside of the caller's own no_sync()."""
    check(ranks, "ddp accumulated", [0, 1])


@pytest.mark.parametrize("wrapper", ["ddp", "fsdp"])
def test_a_step_after_an_error(ranks: list[dict[str, Any]], wrapper: str) -> None:
    """Catches no_sync() that stays on after an error, and gradients that outlive it."""
    check(ranks, f"{wrapper} interrupted", 1)


def test_fsdp_around_a_cached_tower(ranks: list[dict[str, Any]]) -> None:
    """Catches an exchange within the forward and backward of the module around."""
    check(ranks, "fsdp around a tower", [1])


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("ddp around", "mmcore.nn.Cached(DistributedDataParallel(tower))"),
        ("fsdp around a sharded tower", "a larger module under fully_shard"),
        ("ddp hidden", "runs a DistributedDataParallel that gradient caching did not find"),
        ("ddp static", "leave static_graph out"),
    ],
)
def test_wrappers_that_are_refused(ranks: list[dict[str, Any]], name: str, words: str) -> None:
    """Catches wrong gradients, or an error of torch that does not say what to do."""
    assert all(words in rank[name]["exchanges"] for rank in ranks)
