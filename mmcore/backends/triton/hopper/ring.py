"""Products of tiles, which a producer warp and two warpgroups pass through one ring of buffers.

A work item is a block of BM rows and a strip of columns. The first RES chunks (BM, BK) of the rows
of x stay in shared memory for the whole item; chunks of y, and the rest of x's, pass through SLOTS
equal buffers. Tile t of the CTA, counted over items, belongs to warpgroup t % 2. The ring is first
in, first out, so the warpgroups multiply in turn, and the epilogue of one runs while the other
multiplies; loads know no tile borders.

Barriers, each waited for by parity:
    full[s]     1 arrival with bytes: the producer's loads into slot s have landed
    empty[s]    1 arrival, by the warpgroup that consumed slot s
    x_full[k]   1 arrival with bytes, once an item: resident chunk k has landed
    x_empty[k]  2 arrivals, once an item: both warpgroups are done with resident chunk k
    order[w]    1 arrival, by the other warpgroup: it has waited for all of its tile's slots

A parity distinguishes a phase only from the one before and the one after it. Without `order`, a
warpgroup that comes early would mistake an older phase for that of its own loads.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)

# Triton 3.9 and 3.6 have different names for it.
load_box = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared


class Ring(NamedTuple):
    """The buffers, known at compile time."""

    K: int  # chunks of a row
    RES: int  # of which stay for an item
    SLOTS: int
    BM: int
    BN: int
    BK: int


class Span(NamedTuple):
    """The rows of a launch, and how tiles of columns make items.

    A kernel takes these numbers one by one: Triton specialises the numbers of a tuple, whatever
    do_not_specialize says, and would compile a kernel for every kind of size.
    """

    first_row: Any
    rows: Any
    columns: Any
    strip_tiles: Any
    spread: Any  # at how many places row blocks begin a strip


class Items(NamedTuple):
    """How many blocks of rows, tiles of columns and items there are."""

    row_blocks: Any
    tiles: Any
    count: Any


@gluon.jit
def items_of(span, RING: gl.constexpr):
    """The work items of a launch."""
    row_blocks, tiles = gl.cdiv(span.rows, RING.BM), gl.cdiv(span.columns, RING.BN)
    return Items(row_blocks, tiles, row_blocks * gl.cdiv(tiles, span.strip_tiles))


@gluon.jit
def item_of(item, items, strip_tiles):
    """Row block, first and last tile of a work item: neighbours share a strip."""
    first = item // items.row_blocks * strip_tiles
    return item % items.row_blocks, first, gl.minimum(first + strip_tiles, items.tiles)


@gluon.jit
def column_of(tile, block, first, last, spread, BN: gl.constexpr):
    """The first column of the tile that is walked as `tile`-th.

    Row blocks begin a strip at `spread` places, so that not all CTAs read the same lines of L2 at
    once.
    """
    moved = tile + (block % spread) % (last - first)
    return gl.where(moved < last, moved, moved - (last - first)) * BN


@gluon.jit
def new_barriers(SLOTS: gl.constexpr, RES: gl.constexpr):
    KEPT: gl.constexpr = RES if RES > 0 else 1
    full = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    x_full = gl.allocate_shared_memory(gl.int64, [KEPT, 1], mbarrier.MBarrierLayout())
    x_empty = gl.allocate_shared_memory(gl.int64, [KEPT, 1], mbarrier.MBarrierLayout())
    order = gl.allocate_shared_memory(gl.int64, [2, 1], mbarrier.MBarrierLayout())
    for slot in gl.static_range(SLOTS):
        mbarrier.init(full.index(slot), count=1)
        mbarrier.init(empty.index(slot), count=1)
    for k in gl.static_range(KEPT):
        mbarrier.init(x_full.index(k), count=1)
        mbarrier.init(x_empty.index(k), count=2)
    for which in gl.static_range(2):
        mbarrier.init(order.index(which), count=1)
    return full, empty, x_full, x_empty, order


@gluon.jit
def fill(desc, row, k, buffer, full, empty, phase, BK: gl.constexpr):
    """Loads one chunk as soon as its buffer is free."""
    mbarrier.wait(empty, phase ^ 1)
    mbarrier.expect(full, desc.block_type.nbytes)
    load_box(desc, [row, k * BK], full, buffer)


@gluon.jit
def producer(x_desc, y_desc, x_kept, ring, barriers, span, items, RING: gl.constexpr):
    """The warp that brings the operands of every tile of the CTA, in the order of their use."""
    K: gl.constexpr = RING.K
    RES: gl.constexpr = RING.RES
    SLOTS: gl.constexpr = RING.SLOTS
    BN: gl.constexpr = RING.BN
    BK: gl.constexpr = RING.BK
    spread = span.spread
    full, empty, x_full, x_empty = barriers[:4]
    n = gl.to_tensor(0)  # slots filled so far
    turn = gl.to_tensor(0)  # items begun so far
    for item in range(gl.program_id(0), items.count, gl.num_programs(0)):
        block, first, last = item_of(item, items, span.strip_tiles)
        i = span.first_row + block * RING.BM
        for tile in range(first, last):
            j = column_of(tile, block, first, last, spread, BN)
            for k in range(K):
                if k < RES:
                    if tile == first:
                        fill(
                            x_desc, i, k, x_kept.index(k), x_full.index(k), x_empty.index(k),
                            turn & 1, BK,
                        )  # fmt: skip
                if RES < K:
                    if k >= RES:
                        slot, phase = n % SLOTS, (n // SLOTS) & 1
                        fill(
                            x_desc, i, k, ring.index(slot), full.index(slot), empty.index(slot),
                            phase, BK,
                        )  # fmt: skip
                        n += 1
                slot, phase = n % SLOTS, (n // SLOTS) & 1
                fill(y_desc, j, k, ring.index(slot), full.index(slot), empty.index(slot), phase, BK)
                n += 1
        turn += 1


@gluon.jit
def multiply(
    x_kept, ring, barriers, tile, turn, is_last, WHICH: gl.constexpr, RING: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """The products of the CTA's tile of that number; gives all slots back.

    A slot is free one step after its product was issued: one product is always in flight.
    """
    K: gl.constexpr = RING.K
    RES: gl.constexpr = RING.RES
    SLOTS: gl.constexpr = RING.SLOTS
    BM: gl.constexpr = RING.BM
    BN: gl.constexpr = RING.BN
    full, empty, x_full, x_empty, order = barriers
    n = tile * (2 * K - RES)
    mbarrier.wait(order.index(WHICH), (tile // 2 + 1 - WHICH) & 1)
    acc = warpgroup_mma_init(gl.zeros([BM, BN], gl.float32, layout))
    for k in range(RES):
        slot = n % SLOTS
        mbarrier.wait(x_full.index(k), turn & 1)
        mbarrier.wait(full.index(slot), (n // SLOTS) & 1)
        acc = warpgroup_mma(
            x_kept.index(k), ring.index(slot).permute((1, 0)), acc, use_acc=k > 0, is_async=True
        )
        acc = warpgroup_mma_init(warpgroup_mma_wait(num_outstanding=1, deps=(acc,)))
        mbarrier.arrive(empty.index((n + SLOTS - 1) % SLOTS), count=1, pred=k > 0)
        mbarrier.arrive(x_empty.index(gl.maximum(k - 1, 0)), count=1, pred=is_last & (k > 0))
        n += 1
    if RES < K:
        for k in range(RES, K):
            slot, second = n % SLOTS, (n + 1) % SLOTS
            mbarrier.wait(full.index(slot), (n // SLOTS) & 1)
            mbarrier.wait(full.index(second), ((n + 1) // SLOTS) & 1)
            acc = warpgroup_mma(
                ring.index(slot), ring.index(second).permute((1, 0)), acc, use_acc=k > 0,
                is_async=True,
            )  # fmt: skip
            acc = warpgroup_mma_init(warpgroup_mma_wait(num_outstanding=1, deps=(acc,)))
            mbarrier.arrive(empty.index((n + SLOTS - 1) % SLOTS), count=1, pred=k > 0)
            mbarrier.arrive(empty.index((n + 2 * SLOTS - 2) % SLOTS), count=1, pred=k > RES)
            if RES > 0:
                mbarrier.arrive(x_empty.index(RES - 1), count=1, pred=is_last & (k == RES))
            n += 2
    mbarrier.arrive(order.index(1 - WHICH), count=1)
    products = warpgroup_mma_wait(num_outstanding=0, deps=(acc,))
    mbarrier.arrive(empty.index((n + SLOTS - 1) % SLOTS), count=1)
    if RES < K:
        mbarrier.arrive(empty.index((n + 2 * SLOTS - 2) % SLOTS), count=1)
    else:
        mbarrier.arrive(x_empty.index(RES - 1), count=1, pred=is_last)
    return products


@gluon.jit
def pass_by(barriers, turn, RES: gl.constexpr):
    """Passes an item of which the warpgroup has no tile."""
    x_full, x_empty = barriers[2], barriers[3]
    for k in range(RES):
        mbarrier.wait(x_full.index(k), turn & 1)
        mbarrier.arrive(x_empty.index(k), count=1)
