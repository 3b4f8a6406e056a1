"""G of the softmax family, for a chunk of rows at a time, for Hopper.

    G_ij = E_ij·(R_i + C_j), but t_i where j = target(i)

R, C and t are those of gradient_terms.py, E is that of exponential_sums.py. A tile with a row or a
column too far below the bound of the shared shift is stored as 0; the exact launch of
softmax_similarity/gradient.py, which has the same tiles, then computes it.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: ring.py. The epilogue takes a tile in two halves, whose 16-bit numbers pass through
shared memory.
Precision: float32. The sum of G with the products, which is the gradient of the scale, is taken
before G is rounded, in float64 across the tiles of an item; each warpgroup stores its own.
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
    unmerged,
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
def half_gradient(
    products, high, low, shift, factor_i, col_factor, i, in_rows, target_i, target_gradient,
    first_j, columns, is_special, is_trusted, dtype: gl.constexpr, HAS_TARGET: gl.constexpr,
    WIDTH: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """G, and its sum with the products by rows."""
    j = first_j + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    factor_j = gl.load(col_factor + j, mask=j < columns, other=0)
    # Whole in both branches: what a branch ends with is 16-bit, so that no products wait behind it.
    if is_special:
        products = unmerged(products)
        e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
        g = e * (factor_i.expand_dims(1) + factor_j.expand_dims(0))
        if HAS_TARGET:
            at_target = gl.load(target_gradient + i, mask=in_rows, other=0)
            is_target = target_i.expand_dims(1) == j.expand_dims(0)
            g = gl.where(is_target, at_target.expand_dims(1), g)
        inside = in_rows.expand_dims(1) & (j < columns).expand_dims(0)
        g = gl.where(inside & is_trusted, g, 0.0)
        part = gl.sum(g * products, 1)
        narrow = g.to(dtype)
    else:
        e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
        g = e * (factor_i.expand_dims(1) + factor_j.expand_dims(0))
        part = gl.sum(g * products, 1)
        narrow = g.to(dtype)
    return narrow, part


@gluon.jit
def consumer(
    out_desc, x_kept, ring, staging, barriers, plan, row_factor, col_factor, row_untrusted,
    col_untrusted, target, target_gradient, scale_part, first_row, chunk_rows, columns, row_blocks,
    strip_tiles, tiles, items, spread, WHICH: gl.constexpr, K: gl.constexpr, RES: gl.constexpr,
    SLOTS: gl.constexpr, HAS_TARGET: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr,
):  # fmt: skip
    """A warpgroup: every other tile."""
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    HALF: gl.constexpr = BN // 2
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, half_layout)
    high, low, shift = gl.load(plan), gl.load(plan + 1), gl.load(plan + 2)
    begun = gl.to_tensor(0)  # tiles of earlier items
    turn = gl.to_tensor(0)
    for item in range(gl.program_id(0), items, gl.num_programs(0)):
        block, first, last = item_of(item, row_blocks, strip_tiles, tiles)
        in_chunk = block * BM + gl.arange(0, BM, by_row)
        in_rows = in_chunk < chunk_rows
        i = first_row + in_chunk
        target_i, least, largest = load_row_targets(target, i, in_rows, columns, HAS_TARGET)
        factor_i = gl.load(row_factor + i, mask=in_rows, other=0)
        are_rows_trusted = gl.load(row_untrusted + first_row // BM + block) == 0
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
            first_j = column_of(tile, block, first, last, spread, BN)
            is_trusted = are_rows_trusted & (gl.load(col_untrusted + first_j // BN) == 0)
            is_near = (largest >= first_j) & (least < first_j + BN)
            is_special = is_near | is_row_edge | (first_j + BN > columns) | (is_trusted == 0)
            left, right = halves(products, BM, BN, half_layout)
            g, part = half_gradient(
                left, high, low, shift, factor_i, col_factor, i, in_rows, target_i,
                target_gradient, first_j, columns, is_special, is_trusted, out_desc.dtype,
                HAS_TARGET, HALF, half_layout,
            )  # fmt: skip
            store_half(out_desc, staging, g, block * BM, first_j)
            g, more = half_gradient(
                right, high, low, shift, factor_i, col_factor, i, in_rows, target_i,
                target_gradient, first_j + HALF, columns, is_special, is_trusted, out_desc.dtype,
                HAS_TARGET, HALF, half_layout,
            )  # fmt: skip
            store_half(out_desc, staging, g, block * BM, first_j + HALF)
            total += (part + more).to(gl.float64)
        begun += last - first
        turn += 1
        gl.store(scale_part + 2 * item + WHICH, gl.sum(total, 0))
    tma.store_wait(pendings=0)


@gluon.jit(do_not_specialize=["first_row", "chunk_rows", "columns", "strip_tiles", "spread"])
def hopper_store_gradient_kernel(
    x_desc, y_desc, out_desc, plan, row_factor, col_factor, row_untrusted, col_untrusted, target,
    target_gradient, scale_part, first_row, chunk_rows, columns, strip_tiles, spread,
    K: gl.constexpr, RES: gl.constexpr, SLOTS: gl.constexpr, HAS_TARGET: gl.constexpr,
    BM: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RES if RES > 0 else 1
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    first = gl.allocate_shared_memory(out_desc.dtype, [BM, BN // 2], out_desc.layout)
    second = gl.allocate_shared_memory(out_desc.dtype, [BM, BN // 2], out_desc.layout)
    barriers = new_barriers(SLOTS, RES)
    row_blocks, tiles = gl.cdiv(chunk_rows, BM), gl.cdiv(columns, BN)
    items = row_blocks * gl.cdiv(tiles, strip_tiles)
    gl.warp_specialize(
        [
            (consumer, (
                out_desc, x_kept, ring, first, barriers, plan, row_factor, col_factor,
                row_untrusted, col_untrusted, target, target_gradient, scale_part, first_row,
                chunk_rows, columns, row_blocks, strip_tiles, tiles, items, spread, 0, K, RES,
                SLOTS, HAS_TARGET, BM, BN,
            )),
            (consumer, (
                out_desc, x_kept, ring, second, barriers, plan, row_factor, col_factor,
                row_untrusted, col_untrusted, target, target_gradient, scale_part, first_row,
                chunk_rows, columns, row_blocks, strip_tiles, tiles, items, spread, 1, K, RES,
                SLOTS, HAS_TARGET, BM, BN,
            )),
            (producer, (
                x_desc, y_desc, x_kept, ring, barriers, first_row, row_blocks, strip_tiles, tiles,
                items, spread, K, RES, SLOTS, BM, BN, BK,
            )),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
