"""G of the softmax family, for a chunk of rows at a time, for Hopper.

    G_ij = E_ij·(R_i + C_j), but t_i where j = target(i)

R, C and t are those of gradient_terms.py, or of a loss (clip/); E is that of exponential_sums.py.
A tile with a row or a column too far below the bound of the shared shift is stored as 0; the exact
launch of softmax_similarity/gradient.py, which has the same tiles, then computes it.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: ring.py. The epilogue takes a tile in two halves, whose 16-bit numbers pass through
shared memory.
Precision: float32; G is multiplied by its gain before it is rounded (softmax_similarity/gain.py).
The sum of G with the products, which is the gradient of the scale, is taken
before G is rounded, in float64 across the tiles of an item; each warpgroup stores its own.
"""

from __future__ import annotations

from typing import Any, NamedTuple

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
    Span,
    column_of,
    item_of,
    items_of,
    multiply,
    new_barriers,
    pass_by,
    producer,
)
from mmcore.backends.triton.hopper.shift import gain_of
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.softmax_similarity.terms_memory import FLAGGED, HEADER


class TileTerms(NamedTuple):
    """Terms of G, as parts of one memory (softmax_similarity/terms_memory.py)."""

    row_factor: Any  # R
    col_factor: Any  # C
    row_flags: Any  # where the shared shift fails, for every 64 rows
    col_flags: Any
    target: Any  # G of the targets


@gluon.jit
def terms_in(memory, rows, columns, COUNT: gl.constexpr):
    """Where they are."""
    row = memory + HEADER
    col = row + COUNT * gl.cast(rows, gl.int64)
    target = col + COUNT * gl.cast(columns, gl.int64)
    row_flags = target + rows
    return TileTerms(row, col, row_flags, row_flags + gl.cdiv(rows, FLAGGED), target)


@gluon.jit
def has_flag(flags, first, size):
    """Whether the shared shift fails in one of BM rows or columns; FLAGGED is half of BM."""
    at = first // FLAGGED
    more = gl.load(flags + at + 1, mask=(at + 1) * FLAGGED < size, other=0)
    return (gl.load(flags + at) + more) > 0


@gluon.jit
def half_gradient(
    products, high, low, shift, gain, factor_i, terms, i, in_rows, target_i, first_j, columns,
    is_special, is_trusted, dtype: gl.constexpr, HAS_TARGET: gl.constexpr,
    WIDTH: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """G, and its sum with the products by rows."""
    j = first_j + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
    factor_j = gl.load(terms.col_factor + j, mask=j < columns, other=0)
    # Whole in both branches: what a branch ends with is 16-bit, so that no products wait behind it.
    if is_special:
        products = unmerged(products)
        e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
        g = e * (factor_i.expand_dims(1) + factor_j.expand_dims(0))
        if HAS_TARGET:
            at_target = gl.load(terms.target + i, mask=in_rows, other=0)
            is_target = target_i.expand_dims(1) == j.expand_dims(0)
            g = gl.where(is_target, at_target.expand_dims(1), g)
        inside = in_rows.expand_dims(1) & (j < columns).expand_dims(0)
        g = gl.where(inside & is_trusted, g, 0.0)
        part = gl.sum(g * products, 1)
        narrow = (g * gain).to(dtype)
    else:
        e = exp2_flushed(gl.fma(products, low, gl.fma(products, high, -shift)))
        g = e * (factor_i.expand_dims(1) + factor_j.expand_dims(0))
        part = gl.sum(g * products, 1)
        narrow = (g * gain).to(dtype)
    return narrow, part


@gluon.jit
def consumer(
    out_desc, x_kept, ring, staging, barriers, numbers, gain, terms, size_rows, target,
    scale_part, span, items, WHICH: gl.constexpr, RING: gl.constexpr, HAS_TARGET: gl.constexpr,
    IS_DIAGONAL: gl.constexpr,
):  # fmt: skip
    """A warpgroup: every other tile."""
    BM: gl.constexpr = RING.BM
    BN: gl.constexpr = RING.BN
    RES: gl.constexpr = RING.RES
    columns, spread = span.columns, span.spread
    layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    HALF: gl.constexpr = BN // 2
    half_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, half_layout)
    high, low, shift = gl.load(numbers), gl.load(numbers + 1), gl.load(numbers + 2)
    begun = gl.to_tensor(0)  # tiles of earlier items
    turn = gl.to_tensor(0)
    for item in range(gl.program_id(0), items.count, gl.num_programs(0)):
        block, first, last = item_of(item, items, span.strip_tiles)
        in_chunk = block * BM + gl.arange(0, BM, by_row)
        in_rows = in_chunk < span.rows
        i = span.first_row + in_chunk
        target_i, least, largest = load_row_targets(
            target, i, in_rows, columns, HAS_TARGET, IS_DIAGONAL
        )
        factor_i = gl.load(terms.row_factor + i, mask=in_rows, other=0)
        fail_rows = has_flag(terms.row_flags, span.first_row + block * BM, size_rows)
        is_row_edge = (block + 1) * BM > span.rows
        total = gl.zeros([BM], gl.float64, by_row)
        own_first = first + ((begun + WHICH) & 1)
        if own_first >= last:
            pass_by(barriers, turn, RES)
        for tile in range(own_first, last, 2):
            products = multiply(
                x_kept, ring, barriers, begun + tile - first, turn, tile + 2 >= last, WHICH, RING,
                layout,
            )  # fmt: skip
            first_j = column_of(tile, block, first, last, spread, BN)
            is_trusted = (fail_rows | has_flag(terms.col_flags, first_j, columns)) == 0
            is_near = (largest >= first_j) & (least < first_j + BN)
            is_special = is_near | is_row_edge | (first_j + BN > columns) | (is_trusted == 0)
            left, right = halves(products, BM, BN, half_layout)
            g, part = half_gradient(
                left, high, low, shift, gain, factor_i, terms, i, in_rows, target_i, first_j,
                columns, is_special, is_trusted, out_desc.dtype, HAS_TARGET, HALF, half_layout,
            )  # fmt: skip
            store_half(out_desc, staging, g, block * BM, first_j)
            g, more = half_gradient(
                right, high, low, shift, gain, factor_i, terms, i, in_rows, target_i,
                first_j + HALF, columns, is_special, is_trusted, out_desc.dtype, HAS_TARGET,
                HALF, half_layout,
            )  # fmt: skip
            store_half(out_desc, staging, g, block * BM, first_j + HALF)
            total += (part + more).to(gl.float64)
        begun += last - first
        turn += 1
        gl.store(scale_part + 2 * item + WHICH, gl.sum(total, 0))
    tma.store_wait(pendings=0)


@planned
@gluon.jit(
    do_not_specialize=[
        "first_part", "first_row", "rows", "size_rows", "columns", "strip_tiles", "spread",
    ]
)  # fmt: skip
def hopper_store_gradient_kernel(
    x_desc, y_desc, out_desc, numbers, memory, given, target, scale_part, first_part, first_row,
    rows, size_rows, columns, strip_tiles, spread, RING: gl.constexpr, HAS_TARGET: gl.constexpr,
    IS_DIAGONAL: gl.constexpr, IS_LOSS: gl.constexpr, IS_FLOAT16: gl.constexpr,
    COUNT: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RING.RES if RING.RES > 0 else 1
    SLOTS: gl.constexpr = RING.SLOTS
    BM: gl.constexpr = RING.BM
    BN: gl.constexpr = RING.BN
    BK: gl.constexpr = RING.BK
    HALF: gl.constexpr = BN // 2
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    first = gl.allocate_shared_memory(out_desc.dtype, [BM, HALF], out_desc.layout)
    second = gl.allocate_shared_memory(out_desc.dtype, [BM, HALF], out_desc.layout)
    barriers = new_barriers(RING.SLOTS, RING.RES)
    gain = gain_of(given, size_rows, IS_LOSS, IS_FLOAT16)
    terms = terms_in(memory, size_rows, columns, COUNT)
    own_parts = scale_part + first_part
    span = Span(first_row, rows, columns, strip_tiles, spread)
    items = items_of(span, RING)
    gl.warp_specialize(
        [
            (consumer, (
                out_desc, x_kept, ring, first, barriers, numbers, gain, terms, size_rows,
                target, own_parts, span, items, 0, RING, HAS_TARGET, IS_DIAGONAL,
            )),
            (consumer, (
                out_desc, x_kept, ring, second, barriers, numbers, gain, terms, size_rows,
                target, own_parts, span, items, 1, RING, HAS_TARGET, IS_DIAGONAL,
            )),
            (producer, (x_desc, y_desc, x_kept, ring, barriers, span, items, RING)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
