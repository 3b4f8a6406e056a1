"""How rows and gradients travel between ranks: by machines, and while others are computed with."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import on_ranks
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.ops.sharded import collectives, header, returns, softmax_similarity
from mmcore.ops.sharded.nodes import Nodes

pytestmark = pytest.mark.usefixtures("small_slabs")

EXACT = {"rtol": 1e-12, "atol": 1e-12}
WIDTH = 8
# Rows of each rank, and how many ranks a machine has.
MACHINES = {
    "2 of 2": ([3, 0, 2, 5], 2), "3 of 2": ([1, 2, 0, 0, 4, 3], 2), "2 of 3": ([2] * 6, 3),
    "4 of 2": ([4, 1, 3, 0, 2, 5, 1, 1], 2), "2 of 4": ([4, 1, 3, 0, 2, 5, 1, 1], 4),
}  # fmt: skip
LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip": lambda x, y, **group: functional.clip_loss(x, y, 5.0, **group),
    "siglip": lambda x, y, **group: functional.siglip_loss(x, y, 5.0, -2.0, **group),
    "distill": lambda x, y, **group: sum(
        functional.distill_clip_loss(x, y, 2.0, x.detach().flip(1), y.detach(), 3.0, **group)
    ),
}


@pytest.mark.parametrize(
    ("machines", "nodes"),
    [
        ([7, 7, 7], (1, 3)), ([7, 7, 1, 1], (2, 2)), ([7, 1, 7, 1], (1, 4)), ([7, 7, 1], (1, 3)),
        ([7, 7, 1, 1, 1, 1], (1, 6)), ([3, 2, 1], (1, 3)), ([1, 1, 1, 2, 2, 2], (2, 3)),
    ],
)  # fmt: skip
def test_which_ranks_are_near(machines: list[int], nodes: tuple[int, int]) -> None:
    """Catches machines of unequal numbers of ranks, or mixed ones, that are taken for regular."""
    assert Nodes.of(machines) == nodes


def gradients(loss: str, sides: list[Tensor], **options: Any) -> list[Tensor]:
    leaves = [z.clone().requires_grad_() for z in sides]
    value = LOSSES[loss](*leaves, **options)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("machines", MACHINES)
@pytest.mark.parametrize("exchange", ["gather", "ring"])
def test_sums_of_machines(
    exchange: str, machines: str, loss: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches gradients that reach another rank's rows, or only those of one machine; bits that
    differ from one time to the next.
    """
    counts, size = MACHINES[machines]
    monkeypatch.setattr(header, "machine", lambda: dist.get_rank() // size)
    sides = [torch.randn(sum(counts), WIDTH, dtype=torch.float64) for _ in range(2)]
    value, *whole = gradients(loss, sides)

    def run(rank: int) -> list[list[Tensor]]:
        own = [z.split(counts)[rank] for z in sides]
        options = {"process_group": "world", "exchange": exchange, "gradients": "sum"}
        return [gradients(loss, own, **options) for _ in range(2)]

    with mmcore.workspace(40 * WIDTH * 12):
        found = on_ranks(len(counts), run)
    for first, second in found:
        assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
        torch.testing.assert_close(first[0], value, **EXACT)
    for i, gradient in enumerate(whole, start=1):
        joined = torch.cat([first[i] for first, _ in found])
        torch.testing.assert_close(joined, gradient, **EXACT)


def test_rows_of_a_machine_are_added_before_they_leave_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches gradients of every rank that go to other machines one by one."""
    sent: list[int] = []
    start = returns.start_all_to_all

    def watched(rows: Tensor, given: list[int], *others: Any) -> Any:
        if dist.get_rank() < 2:
            sent.append(sum(given[2:]))  # to the other machine
        return start(rows, given, *others)

    monkeypatch.setattr(header, "machine", lambda: dist.get_rank() // 2)
    monkeypatch.setattr(returns, "start_all_to_all", watched)
    x, y = (torch.randn(6, WIDTH) for _ in range(2))
    on_ranks(4, lambda rank: gradients("clip", [x, y], process_group="world"))
    assert sum(sent) == 2 * len(y)  # for each rank of the other machine; not twice as many


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What rank 0 does in a backward: computes a slab, sends gradients, waits for them."""
    found: list[str] = []
    start = returns.start_all_to_all

    def note(event: str) -> None:
        if dist.get_rank() == 0:
            found.append(event)

    def watched_start(*arguments: Any) -> Any:
        wait = start(*arguments)
        note("sent")
        return lambda: (note("arrived"), wait())[1]

    def serves(backend: str) -> softmax_similarity.Run:
        run = softmax_similarity.Run(backend)
        whole = run.implementation
        run.implementation = SimpleNamespace(
            forward=whole.forward,
            backward=lambda *block: (note("computed"), whole.backward(*block))[1],
        )
        return run

    monkeypatch.setattr(returns, "start_all_to_all", watched_start)
    monkeypatch.setattr(softmax_similarity.family, "serves", serves)
    return found


@pytest.mark.parametrize(("exchange", "legs"), [("gather", 1), ("ring", 1), ("gather", 2)])
def test_gradients_travel_while_the_next_slab_is_computed(
    exchange: str, legs: int, events: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Catches a backward that waits for the gradients of a slab before it computes the next."""
    monkeypatch.setattr(header, "machine", lambda: dist.get_rank() // legs)
    x, y = (torch.randn(4, WIDTH) for _ in range(2))
    options = {"process_group": "world", "exchange": exchange}
    with mmcore.workspace(0):  # a slab has a row of each rank
        on_ranks(4, lambda rank: gradients("clip", [x, y], **options))
    assert events[:4] == ["computed", "sent", "computed", "arrived"]
    further = ["arrived", "sent"]  # of the slab before the last two
    if legs == 1:
        assert events[2:] == [*["computed", "arrived", "sent"] * 3, "arrived"]
    else:
        expected = ["computed", "arrived", *further, "sent"] * 2
        assert events[2:] == [
            "computed",
            *further,
            "sent",
            *expected,
            "arrived",
            *further,
            "arrived",
        ]


@pytest.mark.parametrize("loss", ["gram", "symile, shuffled"])
def test_no_rank_holds_the_rows_of_all(loss: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches rows of all ranks that are copied to each."""
    sizes: list[int] = []
    start = collectives._waiting

    def watched(work: Any, found: Tensor, *others: Any) -> Any:
        if found.dtype == torch.float32:  # rows, and not numbers of rows
            sizes.append(found.numel())
        return start(work, found, *others)

    monkeypatch.setattr(collectives, "_waiting", watched)
    sides = {name: torch.randn(4, WIDTH, requires_grad=True) for name in "abc"}
    calls = {
        "gram": lambda group: functional.gram_loss(sides, 3.0, anchor="a", **group),
        "symile, shuffled": lambda group: functional.symile_loss(
            sides, 3.0, negatives="shuffled", **group
        ),
    }
    group = {"process_group": "world", "exchange": "ring"}
    on_ranks(8, lambda rank: calls[loss](group).backward())
    assert sizes
    assert max(sizes) <= 4 * 2 * WIDTH  # this rank's rows of both others
