"""Bytes and collectives of a step over W ranks, counted in one process, and their formulas.

torch's fake process group has any number of ranks and moves nothing: sizes are right, values are
not. Bytes are those that rank 0 receives from the other ranks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.ops.sharded.nodes import Nodes
from mmcore.ops.sharded.sigmoid_similarity import UNUSED
from mmcore.ops.sharded.slabs import LEAST_COLUMNS

OPS = ("clip", "siglip", "siglip kept", "nt_xent")
EXCHANGES = ("gather", "machines", "ring")
GPUS = 4  # of a machine, where ranks are spread over machines
HEADER, SUMS = 128, 16
ELEMENT = 4  # bytes of float32
FORMULAS = """
n rows of x and of y on each of W ranks, width D, b bytes an element, o = (W - 1)·n rows of others,
S slabs (W hops in a ring); nt_xent has m = 2·n rows a rank, W is even, h = W/2 hops:
  clip     forward   b·o·D + 16·o + 144·(W - 1)             3 + S collectives, in a ring 2 + W
           backward  (b + 4)·o·D + 32·o + 128·(W - 1)       2 + 2·S, 1 + 2·W
  siglip   forward   b·o·D + 144·(W - 1)                    2 + S, 1 + W
           backward  (b + 4)·o·D + 144·(W - 1)              2 + 2·S, 1 + 2·W
  siglip   forward   (b + 4)·o·D + 144·(W - 1)              2 + 2·S, 1 + 2·W
  kept     backward  144·(W - 1)                            2
  nt_xent  forward   h·b·m·D + (h - ½)·16·m + 16·(W - 1)·m + 272·(W - 1)       5 + 2·h
           backward  h·b·m·D + (h - ½)·4·m·D + 48·(W - 1)·m + 128·(W - 1)      4 + 2·h
On machines of 4 ranks gradients of gathered columns take two exchanges, S more in a backward, of as
many bytes: of these (W/4 - 1)·4·n·D come from other machines, and not (W - 4)·4·n·D.
First features, and the float32 gradients that come back; then statistics and labels of columns;
last the comparison of arguments, 128 bytes a rank, and the sums of the mean or of siglip's upstream
gradients, 16."""


@dataclass
class Traffic:
    """Of a forward or a backward."""

    collectives: int = 0
    bytes: int = 0

    def add(self, bytes_: int) -> None:
        """One collective more."""
        self.collectives += 1
        self.bytes += bytes_


@dataclass(frozen=True)
class Step:
    """A forward and a backward."""

    forward: Traffic
    backward: Traffic


@dataclass(frozen=True)
class Exchange:
    """A loss over ranks that have `rows` rows each of x and of y; without a workspace.

    `op` "siglip kept" has one that holds gradients from the forward on, and no more. `exchange` is
    mmcore's, or "machines": "gather" where ranks are spread over machines.
    """

    op: str
    exchange: str
    ranks: int
    rows: int
    width: int

    @property
    def slabs(self) -> int:
        """How many all-gathers bring the columns of all ranks."""
        return -(-self.rows // max(1, LEAST_COLUMNS // self.ranks))


@contextmanager
def fake_ranks(size: int) -> Iterator[None]:
    """This process is rank 0 of so many that are not there."""
    from torch.testing._internal.distributed.fake_pg import FakeStore

    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=size)
    try:
        yield
    finally:
        dist.destroy_process_group()


@contextmanager
def counting(traffic: Traffic) -> Iterator[None]:
    """Counts the collectives of mmcore."""
    gather_name = "all_gather_single" if hasattr(dist, "all_gather_single") else None
    gather_name = gather_name or "all_gather_into_tensor"
    gather, exchange = getattr(dist, gather_name), dist.all_to_all_single

    def counted_gather(found: Tensor, given: Tensor, **options: object) -> object:
        traffic.add(found.nbytes - given.nbytes)
        return gather(found, given, **options)

    def counted_exchange(
        found: Tensor, given: Tensor, taken: list[int], sent: list[int], **options: object
    ) -> object:
        traffic.add(sum(taken[1:]) * found[:1].nbytes)  # but for its own, rank 0's
        return exchange(found, given, taken, sent, **options)

    with (
        mock.patch.object(dist, gather_name, counted_gather),
        mock.patch.object(dist, "all_to_all_single", counted_exchange),
    ):
        yield


def counted(case: Exchange) -> Step:
    """What a step of the case exchanges, by counting."""
    draw = torch.Generator().manual_seed(0)
    x, y = (
        functional.l2_normalize(torch.randn(case.rows, case.width, generator=draw)).requires_grad_()
        for _ in range(2)
    )
    scale, bias = (torch.tensor(at, requires_grad=True) for at in (10.0, -10.0))
    group = {"process_group": "world", "exchange": "ring" if case.exchange == "ring" else "gather"}

    def siglip() -> Tensor:
        return functional.siglip_loss(x, y, scale, bias, **group)

    losses: dict[str, Callable[[], Tensor]] = {
        "clip": lambda: functional.clip_loss(x, y, scale, **group),
        "siglip": siglip, "siglip kept": siglip,
        "nt_xent": lambda: functional.nt_xent_loss(x, y, scale, **group),
    }  # fmt: skip
    step = Step(Traffic(), Traffic())
    nodes = Nodes(case.ranks // GPUS, GPUS) if case.exchange == "machines" else Nodes(1, case.ranks)
    by_machine = mock.patch.object(Nodes, "of", return_value=nodes)
    held = 4 * (x.numel() + y.numel() + UNUSED) if case.op == "siglip kept" else 0
    with fake_ranks(case.ranks), mmcore.workspace(held), by_machine:
        with counting(step.forward):
            loss = losses[case.op]()
        with counting(step.backward):
            loss.backward()
    return step


def predicted(case: Exchange) -> Step:
    """The same, by the formulas."""
    return _of_half(case) if case.op == "nt_xent" else _of_columns(case)


def _of_columns(case: Exchange) -> Step:
    others = (case.ranks - 1) * case.rows
    there = others * case.width * ELEMENT
    back = others * case.width * 4
    is_ring = case.exchange == "ring"
    fetches = case.ranks - 1 if is_ring else case.slabs
    returns = case.ranks if is_ring else case.slabs
    returns *= 2 if case.exchange == "machines" else 1
    once, of_loss = case.ranks - 1, (HEADER + SUMS) * (case.ranks - 1)
    # The sums of the mean, or what every rank back-propagates to those of siglip.
    if case.op == "siglip kept":
        return Step(Traffic(2 + fetches + returns, there + back + of_loss), Traffic(2, of_loss))
    if case.op == "siglip":
        backward = Traffic(2 + fetches + returns, there + back + of_loss)
        return Step(Traffic(2 + fetches, there + of_loss), backward)
    return Step(
        Traffic(3 + fetches, there + 16 * others + of_loss),
        Traffic(2 + fetches + returns, there + back + 32 * others + HEADER * once),
    )


def _of_half(case: Exchange) -> Step:
    hops, rows, once = case.ranks // 2, 2 * case.rows, case.ranks - 1
    there = hops * rows * case.width * ELEMENT
    # Of the last hop two ranks share the work, and half of the rows come back.
    returned = hops * rows - rows // 2
    forward = there + 16 * returned + 16 * once * rows + (2 * HEADER + SUMS) * once
    backward = there + 4 * returned * case.width + 48 * once * rows + HEADER * once
    return Step(Traffic(5 + 2 * hops, forward), Traffic(4 + 2 * hops, backward))


def print_counts(ranks: tuple[int, ...], rows: int, width: int) -> bool:
    """The table of every case; whether all counts equal the formulas."""
    print(FORMULAS)
    print(f"\nCounted on a fake process group, n = {rows} rows a rank, D = {width}, float32, no")
    print("workspace: what rank 0 receives from the others, and the formula where that differs")
    print(f"{'':<22}{'W':>6}{'collectives':>16}{'bytes forward':>16}{'backward':>14}")
    all_equal = True
    for op in OPS:
        for exchange in EXCHANGES if op != "nt_xent" else ("ring",):  # y is x: half a ring
            for size in ranks:
                case = Exchange(op, exchange, size, rows, width)
                found, formula = counted(case), predicted(case)
                all_equal &= found == formula
                print(_row(f"{op}, {exchange}", size, found), flush=True)
                if found != formula:
                    print(_row("  by the formulas", size, formula))
    print("Every count equals its formula." if all_equal else "Counts differ from the formulas.")
    return all_equal


def _row(title: str, size: int, step: Step) -> str:
    collectives = f"{step.forward.collectives} + {step.backward.collectives}"
    bytes_ = f"{step.forward.bytes:>16,}{step.backward.bytes:>14,}"
    return f"{title:<22}{size:>6}{collectives:>16}{bytes_}"
