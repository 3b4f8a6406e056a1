"""Warp-specialised kernels for Hopper in Gluon: sums of exponentials, and G.

A CTA: one warp that issues TMA loads, two warpgroups that multiply and finish tiles in turn. A work
item is a block of BM rows and a strip of columns. The first RES chunks (BM, BK) of the rows of x
stay in shared memory for the whole item; chunks of y, and the rest of x's, pass through one ring of
SLOTS equal buffers. Tile t of the CTA, counted over items, belongs to warpgroup t % 2. The ring is
first in, first out, so the warpgroups multiply in turn, and the epilogue of one runs while the
other multiplies; loads know no tile borders.

Barriers, each waited for by parity:
    full[s]     1 arrival with bytes: the producer's loads into slot s have landed
    empty[s]    1 arrival, by the warpgroup that consumed slot s
    x_full[k]   1 arrival with bytes, once an item: resident chunk k has landed
    x_empty[k]  2 arrivals, once an item: both warpgroups are done with resident chunk k
    order[w]    1 arrival, by the other warpgroup: it has waited for all of its tile's slots

A parity tells a phase from its neighbours alone. Without `order` a warpgroup that comes early would
take the phase before the last for that of its own loads.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_init,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

# Triton 3.9 calls them otherwise than 3.6.
load_box = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_box = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def exp2_flushed(x):
    """2^x, 0 below 2^-126: one MUFU."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def item_of(item, row_blocks, strip_tiles, tiles):
    """Row block, strip, first and last tile of a work item: neighbours share a strip."""
    block, strip = item % row_blocks, item // row_blocks
    first = strip * strip_tiles
    return block, strip, first, gl.minimum(first + strip_tiles, tiles)


@gluon.jit
def columns_of(tile, block, first, last, spread):
    """The columns' tile that is walked as `tile`-th: row blocks begin a strip at `spread` places.

    So that not all CTAs ask for the same lines of L2 at once.
    """
    moved = tile + (block % spread) % (last - first)
    return gl.where(moved < last, moved, moved - (last - first))


@gluon.jit
def producer(
    x_desc, y_desc, x_kept, ring, barriers, first_row, row_blocks, strip_tiles, tiles, items,
    spread, K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr, BK: gl.constexpr,
):  # fmt: skip
    full, empty, x_full, x_empty, order = barriers
    BYTES: gl.constexpr = y_desc.block_type.nbytes
    X_BYTES: gl.constexpr = x_desc.block_type.nbytes
    n = gl.to_tensor(0)  # slots filled so far
    turn = gl.to_tensor(0)  # items begun so far
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        block, strip, first, last = item_of(item, row_blocks, strip_tiles, tiles)
        i = first_row + block * BM
        for tile in range(first, last):
            j = columns_of(tile, block, first, last, spread) * BN
            for k in range(K):
                if k < RES:
                    if tile == first:
                        mbarrier.wait(x_empty.index(k), (turn & 1) ^ 1)
                        mbarrier.expect(x_full.index(k), X_BYTES)
                        load_box(
                            x_desc, [i, k * BK], x_full.index(k), x_kept.index(k)
                        )
                if RES < K:
                    if k >= RES:
                        slot = n % SLOTS
                        mbarrier.wait(empty.index(slot), ((n // SLOTS) & 1) ^ 1)
                        mbarrier.expect(full.index(slot), X_BYTES)
                        load_box(
                            x_desc, [i, k * BK], full.index(slot), ring.index(slot)
                        )
                        n += 1
                slot = n % SLOTS
                mbarrier.wait(empty.index(slot), ((n // SLOTS) & 1) ^ 1)
                mbarrier.expect(full.index(slot), BYTES)
                load_box(
                    y_desc, [j, k * BK], full.index(slot), ring.index(slot)
                )
                n += 1
        turn += 1


@gluon.jit
def multiply(
    x_kept, ring, barriers, tile, turn, is_last, WHICH: gl.constexpr, K: gl.constexpr,
    RES: gl.constexpr, SLOTS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """The products of the CTA's tile of that number; all slots are given back."""
    full, empty, x_full, x_empty, order = barriers
    n = tile * (2 * K - RES)
    mbarrier.wait(order.index(WHICH), ((tile // 2 + 1 - WHICH)) & 1)
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
            slot = n % SLOTS
            second = (n + 1) % SLOTS
            mbarrier.wait(full.index(slot), (n // SLOTS) & 1)
            mbarrier.wait(full.index(second), ((n + 1) // SLOTS) & 1)
            acc = warpgroup_mma(
                ring.index(slot), ring.index(second).permute((1, 0)), acc, use_acc=k > 0, is_async=True
            )
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
    """An item of which a warpgroup has no tile."""
    full, empty, x_full, x_empty, order = barriers
    for k in range(RES):
        mbarrier.wait(x_full.index(k), turn & 1)
        mbarrier.arrive(x_empty.index(k), count=1)


@gluon.jit
def halves(tile, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr):
    """The left and the right half of a tile: no number moves between threads."""
    left, right = tile.reshape([BM, 2, BN // 2]).permute((0, 2, 1)).split()
    left = gl.convert_layout(left, layout, assert_trivial=True)
    return left, gl.convert_layout(right, layout, assert_trivial=True)


@gluon.jit
def store_half(desc, staging, half, i, j):
    """Through `staging`, which the copy engine may still read afterwards."""
    narrow = half.to(desc.dtype)
    tma.store_wait(pendings=0)
    staging.store(narrow)
    fence_async_shared()
    store_box(desc, [i, j], staging)


@gluon.jit
def store_column_sums(
    col_sum, e, block, first_j, columns, BM: gl.constexpr, BN: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """Within warps first; then one thread a column, in halves, whose exchange takes less room."""
    HALF: gl.constexpr = BN // 2
    parts = gl.sum(gl.sum(e.reshape([BM // 64, 4, 16, BN]), 0), 1)
    left, right = parts.reshape([4, 2, HALF]).permute((0, 2, 1)).split()
    at = first_j + gl.arange(0, HALF, gl.SliceLayout(0, layout))
    row_of_sums = col_sum + block.to(gl.int64) * columns
    total = gl.sum(gl.convert_layout(left, layout), 0)
    gl.store(row_of_sums + at, total, mask=at < columns)
    total = gl.sum(gl.convert_layout(right, layout), 0)
    gl.store(row_of_sums + at + HALF, total, mask=at + HALF < columns)


@gluon.jit
def load_row_targets(target, i, in_rows, columns, HAS_TARGET: gl.constexpr):
    """Targets of rows, -1 for none, and the least and the largest column they name."""
    if HAS_TARGET:
        wide = gl.load(target + i, mask=in_rows, other=-1)
        target_i = gl.where((wide >= 0) & (wide < columns), wide, -1).to(gl.int32)
        least = gl.min(gl.where(target_i < 0, 2147483647, target_i), 0)
        largest = gl.max(target_i, 0)
    else:
        target_i = i * 0 - 1
        least, largest = gl.to_tensor(2147483647), gl.to_tensor(-1)
    return target_i, least, largest


@gluon.jit
def sums_consumer(
    kept_desc, x_kept, ring, staging, barriers, plan, target, row_sum, col_sum,
    first_row, slab_rows, columns, row_blocks, strip_tiles, tiles, items, spread, kept_rows,
    WHICH: gl.constexpr, K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr,
    KEEPS: gl.constexpr, HAS_TARGET: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    by_column: gl.constexpr = gl.SliceLayout(0, layout)
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN // 2, 16])
    sum_layout: gl.constexpr = gl.BlockedLayout([4, 1], [1, 32], [1, 4], [1, 0])
    high, low, shift = gl.load(plan), gl.load(plan + 1), gl.load(plan + 2)
    begun = gl.to_tensor(0)  # tiles of earlier items
    turn = gl.to_tensor(0)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        block, strip, first, last = item_of(item, row_blocks, strip_tiles, tiles)
        in_slab = block * BM + gl.arange(0, BM, by_row)
        in_rows = in_slab < slab_rows
        target_i, least, largest = load_row_targets(
            target, first_row + in_slab, in_rows, columns, HAS_TARGET
        )
        is_row_edge = (block + 1) * BM > slab_rows
        total = gl.zeros([BM], gl.float32, by_row)
        own_first = first + ((begun + WHICH) & 1)
        if own_first >= last:
            pass_by(barriers, turn, RES)
        for tile in range(own_first, last, 2):
            products = multiply(
                x_kept, ring, barriers, begun + tile - first, turn, tile + 2 >= last, WHICH, K, RES,
                SLOTS, BM, BN, layout,
            )  # fmt: skip
            first_j = columns_of(tile, block, first, last, spread) * BN
            e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
            is_near = (largest >= first_j) & (least < first_j + BN)
            if is_near | is_row_edge | (first_j + BN > columns):
                j = first_j + gl.arange(0, BN, by_column)
                keep = in_rows.expand_dims(1) & (j < columns).expand_dims(0)
                keep = keep & (target_i.expand_dims(1) != j.expand_dims(0))
                e = gl.where(keep, e, 0.0)
            total += gl.sum(e, 1)
            store_column_sums(col_sum, e, block, first_j, columns, BM, BN, sum_layout)
            if KEEPS:
                if first_row + block * BM < kept_rows:
                    i = first_row + block * BM
                    left, right = halves(e, BM, BN, half_layout)
                    store_half(kept_desc, staging, left, i, first_j)
                    store_half(kept_desc, staging, right, i, first_j + BN // 2)
        begun += last - first
        turn += 1
        at_row = (2 * strip + WHICH).to(gl.int64) * slab_rows + in_slab
        gl.store(row_sum + at_row, total, mask=in_rows)
    if KEEPS:
        tma.store_wait(pendings=0)


@gluon.jit
def half_gradient(
    products, high, low, shift, factor_i, col_factor, i, in_rows, target_i, target_gradient,
    first_j, columns, is_special, dtype: gl.constexpr, HAS_TARGET: gl.constexpr, WIDTH: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """G, and its sum with the products by rows."""
    j = first_j + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    factor_j = gl.load(col_factor + j, mask=j < columns, other=0)
    # Whole in both branches: what a branch ends with is 16-bit, so that no products wait behind it.
    if is_special:
        e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
        g = e * (factor_i.expand_dims(1) + factor_j.expand_dims(0))
        inside = in_rows.expand_dims(1) & (j < columns).expand_dims(0)
        g = gl.where(inside, g, 0.0)
        if HAS_TARGET:
            at_target = gl.load(target_gradient + i, mask=in_rows, other=0)
            is_target = target_i.expand_dims(1) == j.expand_dims(0)
            g = gl.where(is_target, at_target.expand_dims(1), g)
        part = gl.sum(g * products, 1)
        narrow = g.to(dtype)
    else:
        e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
        g = e * (factor_i.expand_dims(1) + factor_j.expand_dims(0))
        part = gl.sum(g * products, 1)
        narrow = g.to(dtype)
    return narrow, part


@gluon.jit
def gradient_consumer(
    out_desc, x_kept, ring, staging, barriers, plan, row_factor, col_factor, target,
    target_gradient, scale_part, first_row, chunk_rows, columns, row_blocks, strip_tiles, tiles,
    items, spread,
    WHICH: gl.constexpr, K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr,
    HAS_TARGET: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    HALF: gl.constexpr = BN // 2
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, half_layout)
    high, low, shift = gl.load(plan), gl.load(plan + 1), gl.load(plan + 2)
    begun = gl.to_tensor(0)
    turn = gl.to_tensor(0)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        block, strip, first, last = item_of(item, row_blocks, strip_tiles, tiles)
        in_chunk = block * BM + gl.arange(0, BM, by_row)
        in_rows = in_chunk < chunk_rows
        i = first_row + in_chunk
        target_i, least, largest = load_row_targets(target, i, in_rows, columns, HAS_TARGET)
        factor_i = gl.load(row_factor + i, mask=in_rows, other=0)
        is_row_edge = (block + 1) * BM > chunk_rows
        total = gl.zeros([BM], gl.float64, by_row)
        own_first = first + ((begun + WHICH) & 1)
        if own_first >= last:
            pass_by(barriers, turn, RES)
        for tile in range(own_first, last, 2):
            products = multiply(
                x_kept, ring, barriers, begun + tile - first, turn, tile + 2 >= last, WHICH, K, RES,
                SLOTS, BM, BN, layout,
            )  # fmt: skip
            first_j = columns_of(tile, block, first, last, spread) * BN
            is_near = (largest >= first_j) & (least < first_j + BN)
            is_special = is_near | is_row_edge | (first_j + BN > columns)
            left, right = halves(products, BM, BN, half_layout)
            g, part = half_gradient(
                left, high, low, shift, factor_i, col_factor, i, in_rows, target_i,
                target_gradient, first_j, columns, is_special, out_desc.dtype, HAS_TARGET, HALF, half_layout,
            )  # fmt: skip
            store_half(out_desc, staging, g, block * BM, first_j)
            g, more = half_gradient(
                right, high, low, shift, factor_i, col_factor, i, in_rows, target_i,
                target_gradient, first_j + HALF, columns, is_special, out_desc.dtype, HAS_TARGET, HALF,
                half_layout,
            )  # fmt: skip
            store_half(out_desc, staging, g, block * BM, first_j + HALF)
            total += (part + more).to(gl.float64)
        begun += last - first
        turn += 1
        gl.store(scale_part + 2 * item + WHICH, gl.sum(total, 0))
    tma.store_wait(pendings=0)


@gluon.jit
def barriers_of(SLOTS: gl.constexpr, RES: gl.constexpr):
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


@gluon.jit(
    do_not_specialize=["first_row", "slab_rows", "columns", "strip_tiles", "spread", "kept_rows"]
)
def sum_exponentials_hopper(
    x_desc, y_desc, kept_desc, plan, target, row_sum, col_sum,
    first_row, slab_rows, columns, strip_tiles, spread, kept_rows,
    K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr, KEEPS: gl.constexpr,
    HAS_TARGET: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RES if RES > 0 else 1
    gl.static_assert(RES == K or BM == BN)
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    if KEEPS:
        first = gl.allocate_shared_memory(kept_desc.dtype, [BM, BN // 2], kept_desc.layout)
        second = gl.allocate_shared_memory(kept_desc.dtype, [BM, BN // 2], kept_desc.layout)
    else:
        first, second = ring, ring
    barriers = barriers_of(SLOTS, RES)
    row_blocks, tiles = gl.cdiv(slab_rows, BM), gl.cdiv(columns, BN)
    items = row_blocks * gl.cdiv(tiles, strip_tiles)
    gl.warp_specialize(
        [
            (sums_consumer, (
                kept_desc, x_kept, ring, first, barriers, plan, target, row_sum, col_sum,
                first_row, slab_rows, columns, row_blocks, strip_tiles, tiles, items, spread, kept_rows,
                0, K, RES, SLOTS, KEEPS, HAS_TARGET, BM, BN,
            )),
            (sums_consumer, (
                kept_desc, x_kept, ring, second, barriers, plan, target, row_sum, col_sum,
                first_row, slab_rows, columns, row_blocks, strip_tiles, tiles, items, spread, kept_rows,
                1, K, RES, SLOTS, KEEPS, HAS_TARGET, BM, BN,
            )),
            (producer, (
                x_desc, y_desc, x_kept, ring, barriers, first_row, row_blocks, strip_tiles, tiles,
                items, spread, K, RES, SLOTS, BM, BN, BK,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


@gluon.jit(do_not_specialize=["first_row", "chunk_rows", "columns", "strip_tiles", "spread"])
def store_gradient_hopper(
    x_desc, y_desc, out_desc, plan, row_factor, col_factor, target, target_gradient, scale_part,
    first_row, chunk_rows, columns, strip_tiles, spread,
    K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr,
    HAS_TARGET: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RES if RES > 0 else 1
    gl.static_assert(RES == K or BM == BN)
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    first = gl.allocate_shared_memory(out_desc.dtype, [BM, BN // 2], out_desc.layout)
    second = gl.allocate_shared_memory(out_desc.dtype, [BM, BN // 2], out_desc.layout)
    barriers = barriers_of(SLOTS, RES)
    row_blocks, tiles = gl.cdiv(chunk_rows, BM), gl.cdiv(columns, BN)
    items = row_blocks * gl.cdiv(tiles, strip_tiles)
    gl.warp_specialize(
        [
            (gradient_consumer, (
                out_desc, x_kept, ring, first, barriers, plan, row_factor, col_factor, target,
                target_gradient, scale_part, first_row, chunk_rows, columns, row_blocks,
                strip_tiles, tiles, items, spread, 0, K, RES, SLOTS, HAS_TARGET, BM, BN,
            )),
            (gradient_consumer, (
                out_desc, x_kept, ring, second, barriers, plan, row_factor, col_factor, target,
                target_gradient, scale_part, first_row, chunk_rows, columns, row_blocks,
                strip_tiles, tiles, items, spread, 1, K, RES, SLOTS, HAS_TARGET, BM, BN,
            )),
            (producer, (
                x_desc, y_desc, x_kept, ring, barriers, first_row, row_blocks, strip_tiles, tiles,
                items, spread, K, RES, SLOTS, BM, BN, BK,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip


class Tile(NamedTuple):
    """RES = -1: as many chunks of x as there is room for beside SLOTS buffers."""

    BM: int = 128
    BN: int = 128
    BK: int = 64
    SLOTS: int = 6
    RES: int = -1


SHARED_BYTES = 232448
# Barriers, and what reductions across warps take.
SUMS_SCRATCH_BYTES = 3072
GRADIENT_SCRATCH_BYTES = 1024
# 384 threads: two warpgroups of 240 registers, the producer's of 24.
OPTIONS = {"num_warps": 4, "maxnreg": 168}


def constants(tile: Tile, depth: int, stages_output: bool, scratch: int) -> dict[str, int]:
    """K, RES and SLOTS that fit; raises where nothing does."""
    itemsize = 2
    chunks = triton.cdiv(depth, tile.BK)
    held = scratch + tile.SLOTS * tile.BN * tile.BK * itemsize
    if stages_output:
        held += tile.BM * tile.BN * itemsize
    room = (SHARED_BYTES - held) // (tile.BM * tile.BK * itemsize)
    resident = min(chunks, room) if tile.RES < 0 else min(chunks, tile.RES)
    if resident > room:
        raise ValueError(f"{tile} does not fit: {resident} chunks of x, room for {room}")
    # A warpgroup holds the buffers of two steps at once: with fewer it would wait for itself.
    if tile.SLOTS < (2 if resident == chunks else 4):
        raise ValueError(f"{tile} would never end")
    if resident < chunks and tile.BM != tile.BN:
        raise ValueError(f"{tile}: x and y share a ring of equal buffers")
    sizes = {"BM": tile.BM, "BN": tile.BN, "BK": tile.BK}
    return {"K": chunks, "RES": max(resident, 0), "SLOTS": tile.SLOTS, **sizes}


def strip_of(row_blocks: int, tiles: int, programs: int) -> int:
    """Tiles of a strip with which the last program ends first; an item costs a tile more."""

    def cost(strip: int) -> int:
        items = row_blocks * triton.cdiv(tiles, strip)
        return triton.cdiv(items, programs) * (strip + 1)

    strips = range(1, min(tiles, 64) + 1)
    return min((triton.cdiv(tiles, count) for count in strips), key=cost)


def descriptor(tensor: torch.Tensor, rows: int, columns: int) -> TensorDescriptor:
    dtype = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}[tensor.dtype]
    layout = gl.NVMMASharedLayout.get_default_for([rows, columns], dtype)
    return TensorDescriptor.from_tensor(tensor, [rows, columns], layout)


def padded(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """(rows, columns) whose rows begin at multiples of 16 bytes."""
    return like.new_empty(rows, triton.cdiv(columns, 8) * 8)[:, :columns]


def programs_of(device: torch.device, items: int, programs: int | None) -> int:
    if programs is None:
        programs = torch.cuda.get_device_properties(device).multi_processor_count
    return min(programs, items)


def sum_exponentials(
    x: torch.Tensor, y: torch.Tensor, plan: torch.Tensor, target: torch.Tensor | None,
    first_row: int = 0, slab_rows: int | None = None, kept: torch.Tensor | None = None,
    tile: Tile = Tile(), programs: int | None = None, strip_tiles: int | None = None,
    spread: int = 1, warmup: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:  # fmt: skip
    """Partial sums: (parts, slab_rows) by rows, (row blocks of the slab, M) by columns.

    plan: (high, low, shift), float32. kept: rows 0 to len(kept) of E, filled where in the slab.
    """
    columns = y.shape[0]
    slab_rows = x.shape[0] - first_row if slab_rows is None else slab_rows
    settings = constants(tile, x.shape[1], kept is not None, SUMS_SCRATCH_BYTES)
    row_blocks, tiles = triton.cdiv(slab_rows, tile.BM), triton.cdiv(columns, tile.BN)
    wanted = programs_of(x.device, row_blocks * tiles, programs)
    strip_tiles = strip_of(row_blocks, tiles, wanted) if strip_tiles is None else strip_tiles
    strips = triton.cdiv(tiles, strip_tiles)
    row_sum = plan.new_empty(2 * strips, slab_rows)
    col_sum = plan.new_empty(row_blocks, columns)
    x_desc = descriptor(x, tile.BM, tile.BK)
    kept_desc = x_desc if kept is None else descriptor(kept, tile.BM, tile.BN // 2)
    grid = (min(wanted, row_blocks * strips),)
    arguments = (
        x_desc, descriptor(y, tile.BN, tile.BK), kept_desc, plan,
        plan if target is None else target, row_sum, col_sum,
        first_row, slab_rows, columns, strip_tiles, spread, 0 if kept is None else len(kept),
    )  # fmt: skip
    options = {
        **settings, "KEEPS": kept is not None, "HAS_TARGET": target is not None, **OPTIONS
    }
    if warmup:
        sum_exponentials_hopper.warmup(*arguments, grid=grid, **options)
    else:
        sum_exponentials_hopper[grid](*arguments, **options)
    return row_sum, col_sum


def store_gradient(
    x: torch.Tensor, y: torch.Tensor, plan: torch.Tensor, row_factor: torch.Tensor,
    col_factor: torch.Tensor, target: torch.Tensor | None, target_gradient: torch.Tensor | None,
    out: torch.Tensor, first_row: int = 0, chunk_rows: int | None = None,
    tile: Tile = Tile(SLOTS=4), programs: int | None = None, strip_tiles: int | None = None,
    spread: int = 1, warmup: bool = False,
) -> torch.Tensor:  # fmt: skip
    """G of a chunk of rows into `out`; what is returned adds up to the sum of G * product.

    row_factor, col_factor and target_gradient are of all rows and columns, float32.
    """
    columns = y.shape[0]
    chunk_rows = x.shape[0] - first_row if chunk_rows is None else chunk_rows
    settings = constants(tile, x.shape[1], True, GRADIENT_SCRATCH_BYTES)
    row_blocks, tiles = triton.cdiv(chunk_rows, tile.BM), triton.cdiv(columns, tile.BN)
    wanted = programs_of(x.device, row_blocks * tiles, programs)
    strip_tiles = strip_of(row_blocks, tiles, wanted) if strip_tiles is None else strip_tiles
    items = row_blocks * triton.cdiv(tiles, strip_tiles)
    scale_part = torch.empty(2 * items, dtype=torch.float64, device=x.device)
    grid = (min(wanted, items),)
    # Rows of `out` beyond the chunk's are clipped by the copy engine.
    arguments = (
        descriptor(x, tile.BM, tile.BK), descriptor(y, tile.BN, tile.BK),
        descriptor(out[:chunk_rows], tile.BM, tile.BN // 2), plan, row_factor, col_factor,
        plan if target is None else target,
        plan if target_gradient is None else target_gradient, scale_part,
        first_row, chunk_rows, columns, strip_tiles, spread,
    )  # fmt: skip
    options = {**settings, "HAS_TARGET": target is not None, **OPTIONS}
    if warmup:
        store_gradient_hopper.warmup(*arguments, grid=grid, **options)
    else:
        store_gradient_hopper[grid](*arguments, **options)
    return scale_part
