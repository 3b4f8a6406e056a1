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
    Span,
    column_of,
    item_of,
    items_of,
    multiply,
    new_barriers,
    pass_by,
    producer,
)
from mmcore.backends.triton.hopper.shift import shift_of
from mmcore.backends.triton.launch_plan import planned


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
    kept_desc, x_kept, ring, staging, barriers, high, low, shift, target, sums, span, items,
    kept_rows, WHICH: gl.constexpr, RING: gl.constexpr, KEEPS: gl.constexpr,
    HAS_TARGET: gl.constexpr, IS_DIAGONAL: gl.constexpr, HAS_COLUMNS: gl.constexpr,
):  # fmt: skip
    """A warpgroup: every other tile."""
    BM: gl.constexpr = RING.BM
    BN: gl.constexpr = RING.BN
    RES: gl.constexpr = RING.RES
    columns, spread = span.columns, span.spread
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, layout)
    by_column: gl.constexpr = gl.SliceLayout(0, layout)
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN // 2, 16])
    sum_layout: gl.constexpr = gl.BlockedLayout([4, 1], [1, 32], [1, 4], [1, 0])
    begun = gl.to_tensor(0)  # tiles of earlier items
    turn = gl.to_tensor(0)
    for item in range(gl.program_id(0), items.count, gl.num_programs(0)):
        block, first, last = item_of(item, items, span.strip_tiles)
        in_slab = block * BM + gl.arange(0, BM, by_row)
        in_rows = in_slab < span.rows
        target_i, least, largest = load_row_targets(
            target, span.first_row + in_slab, in_rows, columns, HAS_TARGET, IS_DIAGONAL
        )
        is_row_edge = (block + 1) * BM > span.rows
        total = gl.zeros([BM], gl.float32, by_row)
        own_first = first + ((begun + WHICH) & 1)
        if own_first >= last:
            pass_by(barriers, turn, RES)
        for tile in range(own_first, last, 2):
            products = multiply(
                x_kept, ring, barriers, begun + tile - first, turn, tile + 2 >= last, WHICH, RING,
                layout,
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
                store_column_sums(sums.col, e, block, first_j, columns, BM, BN, sum_layout)
            if KEEPS:
                i = span.first_row + block * BM
                if i < kept_rows:
                    left, right = halves(e, BM, BN, half_layout)
                    store_half(kept_desc, staging, left, i, first_j)
                    store_half(kept_desc, staging, right, i, first_j + BN // 2)
        begun += last - first
        turn += 1
        part = 2 * (item // items.row_blocks) + WHICH
        at_row = part.to(gl.int64) * span.rows + in_slab
        gl.store(sums.row + at_row, total, mask=in_rows)
    if KEEPS:
        tma.store_wait(pendings=0)


@planned
@gluon.jit(do_not_specialize=["first_row", "rows", "columns", "strip_tiles", "spread", "kept_rows"])
def hopper_sum_exponentials_kernel(
    x_desc, y_desc, kept_desc, norms, scale, target, sums, first_row, rows, columns, strip_tiles,
    spread, kept_rows, RING: gl.constexpr, KEEPS: gl.constexpr, HAS_TARGET: gl.constexpr,
    IS_DIAGONAL: gl.constexpr, HAS_COLUMNS: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RING.RES if RING.RES > 0 else 1
    SLOTS: gl.constexpr = RING.SLOTS
    BM: gl.constexpr = RING.BM
    BN: gl.constexpr = RING.BN
    BK: gl.constexpr = RING.BK
    HALF: gl.constexpr = BN // 2
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    if KEEPS:
        first = gl.allocate_shared_memory(kept_desc.dtype, [BM, HALF], kept_desc.layout)
        second = gl.allocate_shared_memory(kept_desc.dtype, [BM, HALF], kept_desc.layout)
    else:
        first, second = ring, ring
    barriers = new_barriers(RING.SLOTS, RING.RES)
    high, low, shift = shift_of(norms, scale)
    span = Span(first_row, rows, columns, strip_tiles, spread)
    items = items_of(span, RING)
    gl.warp_specialize(
        [
            (consumer, (
                kept_desc, x_kept, ring, first, barriers, high, low, shift, target, sums, span,
                items, kept_rows, 0, RING, KEEPS, HAS_TARGET, IS_DIAGONAL, HAS_COLUMNS,
            )),
            (consumer, (
                kept_desc, x_kept, ring, second, barriers, high, low, shift, target, sums, span,
                items, kept_rows, 1, RING, KEEPS, HAS_TARGET, IS_DIAGONAL, HAS_COLUMNS,
            )),
            (producer, (x_desc, y_desc, x_kept, ring, barriers, span, items, RING)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
