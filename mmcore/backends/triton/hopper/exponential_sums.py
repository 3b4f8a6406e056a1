"""Sums of exponentials of the similarity matrix by rows and by columns, for Hopper.

    E_ij = 2^(a·⟨x_i, y_j⟩ − shift), a = scale·log2(e)
    row_i = Σ_{j ≠ target(i)} E_ij        col_j = Σ_{i: target(i) ≠ j} E_ij

These are the sums of softmax_similarity/exponential_sums.py, for calls with targets or without
positives.

Never stored: the logits. Where KEEPS, E of the first `kept_rows` rows is stored for the backward,
rounded to bfloat16.
Loop order: ring.py. Sums of rows stay in registers over an item; each warpgroup stores its own,
(2·strips, slab rows). Sums of the columns of every tile are stored, (blocks of the slab, M).
Precision: float32, one exponential for each logit. Only tiles that may hold a target or reach
beyond the matrix are masked.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import tma

from mmcore.backends.triton.hopper.epilogue import (
    exp2_flushed,
    halves,
    load_row_targets,
    store_half,
)
from mmcore.backends.triton.hopper.ring import (
    column_of,
    item_of,
    multiply,
    new_barriers,
    pass_by,
    producer,
)


@gluon.jit
def store_column_sums(
    col_sum, e, block, first_j, columns, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr
):
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
def consumer(
    kept_desc, x_kept, ring, staging, barriers, plan, target, row_sum, col_sum,
    first_row, slab_rows, columns, row_blocks, strip_tiles, tiles, items, spread, kept_rows,
    WHICH: gl.constexpr, K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr,
    KEEPS: gl.constexpr, HAS_TARGET: gl.constexpr, HAS_COLUMNS: gl.constexpr, BM: gl.constexpr,
    BN: gl.constexpr,
):  # fmt: skip
    """A warpgroup: every other tile."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    by_column: gl.constexpr = gl.SliceLayout(0, layout)
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN // 2, 16])
    sum_layout: gl.constexpr = gl.BlockedLayout([4, 1], [1, 32], [1, 4], [1, 0])
    high, low, shift = gl.load(plan), gl.load(plan + 1), gl.load(plan + 2)
    begun = gl.to_tensor(0)  # tiles of earlier items
    turn = gl.to_tensor(0)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        block, first, last = item_of(item, row_blocks, strip_tiles, tiles)
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
            first_j = column_of(tile, block, first, last, spread, BN)
            e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
            is_near = (largest >= first_j) & (least < first_j + BN)
            if is_near | is_row_edge | (first_j + BN > columns):
                j = first_j + gl.arange(0, BN, by_column)
                keep = in_rows.expand_dims(1) & (j < columns).expand_dims(0)
                keep = keep & (target_i.expand_dims(1) != j.expand_dims(0))
                e = gl.where(keep, e, 0.0)
            total += gl.sum(e, 1)
            if HAS_COLUMNS:
                store_column_sums(col_sum, e, block, first_j, columns, BM, BN, sum_layout)
            if KEEPS:
                i = first_row + block * BM
                if i < kept_rows:
                    left, right = halves(e, BM, BN, half_layout)
                    store_half(kept_desc, staging, left, i, first_j)
                    store_half(kept_desc, staging, right, i, first_j + BN // 2)
        begun += last - first
        turn += 1
        part = 2 * (item // row_blocks) + WHICH
        at_row = part.to(gl.int64) * slab_rows + in_slab
        gl.store(row_sum + at_row, total, mask=in_rows)
    if KEEPS:
        tma.store_wait(pendings=0)


@gluon.jit(
    do_not_specialize=["first_row", "slab_rows", "columns", "strip_tiles", "spread", "kept_rows"]
)
def hopper_sum_exponentials_kernel(
    x_desc, y_desc, kept_desc, plan, target, row_sum, col_sum,
    first_row, slab_rows, columns, strip_tiles, spread, kept_rows,
    K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr, KEEPS: gl.constexpr,
    HAS_TARGET: gl.constexpr, HAS_COLUMNS: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
    BK: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RES if RES > 0 else 1
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    if KEEPS:
        first = gl.allocate_shared_memory(kept_desc.dtype, [BM, BN // 2], kept_desc.layout)
        second = gl.allocate_shared_memory(kept_desc.dtype, [BM, BN // 2], kept_desc.layout)
    else:
        first, second = ring, ring
    barriers = new_barriers(SLOTS, RES)
    row_blocks, tiles = gl.cdiv(slab_rows, BM), gl.cdiv(columns, BN)
    items = row_blocks * gl.cdiv(tiles, strip_tiles)
    gl.warp_specialize(
        [
            (consumer, (
                kept_desc, x_kept, ring, first, barriers, plan, target, row_sum, col_sum,
                first_row, slab_rows, columns, row_blocks, strip_tiles, tiles, items, spread,
                kept_rows, 0, K, RES, SLOTS, KEEPS, HAS_TARGET, HAS_COLUMNS, BM, BN,
            )),
            (consumer, (
                kept_desc, x_kept, ring, second, barriers, plan, target, row_sum, col_sum,
                first_row, slab_rows, columns, row_blocks, strip_tiles, tiles, items, spread,
                kept_rows, 1, K, RES, SLOTS, KEEPS, HAS_TARGET, HAS_COLUMNS, BM, BN,
            )),
            (producer, (
                x_desc, y_desc, x_kept, ring, barriers, first_row, row_blocks, strip_tiles, tiles,
                items, spread, K, RES, SLOTS, BM, BN, BK,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
