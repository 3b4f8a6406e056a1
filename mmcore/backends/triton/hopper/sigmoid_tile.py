"""Sums over the similarity matrix for sigmoid objectives, with G in the same pass, for Hopper.

    total = Σ_{j ≠ target(i)} softplus(s_ij), s_ij = scale·⟨x_i, y_j⟩ + bias
    G_ij = a·σ(s_ij), but t_i where j = target(i)

These are the formulas of sigmoid_similarity/tile.py, for calls with targets or without positives; t
is that of sigmoid_similarity/prepare.py. Each logit takes one exponential and one reciprocal. 64
logits share one logarithm, because Σ log(1 + z) = log Π (1 + z). The kernel accumulates the product
minus 1, so that small z keep their digits. It masks only tiles that may hold a target or reach
beyond the matrix.

Never stored: the logits, and G beyond one chunk of rows.
Loop order: ring.py. The epilogue takes a tile in two halves, whose 16-bit numbers pass through
shared memory.
Precision: float32; G is stored in the dtype that is multiplied. Sums are taken before G is rounded,
in float64 across the tiles of an item; each warpgroup stores its own.
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
    whole,
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
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.sigmoid_similarity import tile as sigmoid_tile

log1p_of_unit = gluon.jit(sigmoid_tile.log1p_of_unit.fn)


@gluon.jit
def reciprocal(x):
    """Of a number between 1 and 2, in one instruction."""
    return gl.inline_asm_elementwise(
        "rcp.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def both(a, b):
    """(1 + a)(1 + b) − 1, which keeps the digits of small numbers."""
    return gl.fma(a, b, a + b)


@gluon.jit
def log1p(z):
    """log(1 + z) for z ≥ 0."""
    return gl.where(z < 1, log1p_of_unit(z), gl.log2(1.0 + z) * 0.6931471805599453)


@gluon.jit
def odds_and_gradient(products, numbers, grad_total):
    """Of every pair as if it were no target: log2(e)·s, e^−|s| and a·σ(s)."""
    high, low, bias_high, bias_low = numbers
    exponent = gl.fma(products, high, bias_high) + gl.fma(products, low, bias_low)
    z = exp2_flushed(-gl.abs(exponent))
    larger = grad_total * reciprocal(z + 1.0)
    return exponent, z, gl.where(exponent < 0, z * larger, larger)


@gluon.jit
def quarter_sums(
    products, numbers, grad_total, i, in_rows, target_i, target_gradient, first_j, columns,
    is_special, dtype: gl.constexpr, HAS_TARGET: gl.constexpr, WIDTH: gl.constexpr,
    layout: gl.constexpr,
):  # fmt: skip
    """G, and by rows Σ log2(e)·max(s, 0), Π (1 + e^−|s|) − 1, Σ G, and Σ G with the products."""
    # Whole in both branches: what a branch ends with is 16-bit, so that no products wait behind it.
    if is_special:
        products = unmerged(products)
        exponent, z, g = odds_and_gradient(products, numbers, grad_total)
        j = first_j + gl.arange(0, WIDTH, gl.SliceLayout(0, layout))
        counted = in_rows.expand_dims(1) & (j < columns).expand_dims(0)
        g = gl.where(counted, g, 0.0)
        if HAS_TARGET:
            is_target = target_i.expand_dims(1) == j.expand_dims(0)
            at_target = gl.load(target_gradient + i, mask=in_rows, other=0)
            g = gl.where(is_target, at_target.expand_dims(1), g)
            counted = counted & (is_target == 0)
        positive = gl.sum(gl.where(counted, gl.maximum(exponent, 0.0), 0.0), 1)
        odds = gl.reduce(gl.where(counted, z, 0.0), 1, both)
        sum_g, sum_scale = gl.sum(g, 1), gl.sum(g * products, 1)
        narrow = g.to(dtype)
    else:
        exponent, z, g = odds_and_gradient(products, numbers, grad_total)
        positive = gl.sum(gl.maximum(exponent, 0.0), 1)
        odds = gl.reduce(z, 1, both)
        sum_g, sum_scale = gl.sum(g, 1), gl.sum(g * products, 1)
        narrow = g.to(dtype)
    return narrow, positive, odds, sum_g, sum_scale


@gluon.jit
def half_sums(
    products, numbers, grad_total, i, in_rows, target_i, target_gradient, first_j, columns,
    is_special, dtype: gl.constexpr, HAS_TARGET: gl.constexpr, BM: gl.constexpr,
    WIDTH: gl.constexpr, layout: gl.constexpr,
):  # fmt: skip
    """G, and by rows Σ softplus(s), Σ G, and Σ G with the products.

    In quarters of the tile: what a pair needs at once would not fit into registers by halves. A
    half's product of up to 2 each stays within float32, a whole tile's would not.
    """
    QUARTER: gl.constexpr = WIDTH // 2
    narrow: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUARTER, 16])
    left, right = halves(products, BM, WIDTH, narrow)
    g_left, positive, odds, sum_g, sum_scale = quarter_sums(
        left, numbers, grad_total, i, in_rows, target_i, target_gradient, first_j, columns,
        is_special, dtype, HAS_TARGET, QUARTER, narrow,
    )  # fmt: skip
    g_right, more_positive, more_odds, more_g, more_scale = quarter_sums(
        right, numbers, grad_total, i, in_rows, target_i, target_gradient, first_j + QUARTER,
        columns, is_special, dtype, HAS_TARGET, QUARTER, narrow,
    )  # fmt: skip
    positive = (positive + more_positive) * 0.6931471805599453
    total = positive + log1p(both(odds, more_odds))
    g = whole(g_left, g_right, BM, WIDTH, layout)
    return g, total, sum_g + more_g, sum_scale + more_scale


@gluon.jit
def consumer(
    out_desc, x_kept, ring, staging, barriers, numbers, target, parts, span, items,
    WHICH: gl.constexpr, RING: gl.constexpr, HAS_GRADIENTS: gl.constexpr, HAS_TARGET: gl.constexpr,
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
    quarter_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, HALF // 2, 16])
    by_row: gl.constexpr = gl.SliceLayout(1, quarter_layout)
    # log2(e) times scale and bias in two parts each, a, and G of targets (prepare.py).
    high, low = gl.load(numbers + 2), gl.load(numbers + 3)
    known = (high, low, gl.load(numbers + 4), gl.load(numbers + 5))
    grad_total, target_gradient = gl.load(numbers + 8), numbers + 16
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
        is_row_edge = (block + 1) * BM > span.rows
        total = gl.zeros([BM], gl.float64, by_row)
        sum_bias, sum_scale = total, total
        own_first = first + ((begun + WHICH) & 1)
        if own_first >= last:
            pass_by(barriers, turn, RES)
        for tile in range(own_first, last, 2):
            products = multiply(
                x_kept, ring, barriers, begun + tile - first, turn, tile + 2 >= last, WHICH, RING,
                layout,
            )  # fmt: skip
            first_j = column_of(tile, block, first, last, spread, BN)
            is_near = (largest >= first_j) & (least < first_j + BN)
            is_special = is_near | is_row_edge | (first_j + BN > columns)
            left, right = halves(products, BM, BN, half_layout)
            g, total_left, bias_left, scale_left = half_sums(
                left, known, grad_total, i, in_rows, target_i, target_gradient, first_j, columns,
                is_special, out_desc.dtype, HAS_TARGET, BM, HALF, half_layout,
            )  # fmt: skip
            if HAS_GRADIENTS:
                store_half(out_desc, staging, g, block * BM, first_j)
            g, total_right, bias_right, scale_right = half_sums(
                right, known, grad_total, i, in_rows, target_i, target_gradient, first_j + HALF,
                columns, is_special, out_desc.dtype, HAS_TARGET, BM, HALF, half_layout,
            )  # fmt: skip
            total += (total_left + total_right).to(gl.float64)
            if HAS_GRADIENTS:
                store_half(out_desc, staging, g, block * BM, first_j + HALF)
                sum_bias += (bias_left + bias_right).to(gl.float64)
                sum_scale += (scale_left + scale_right).to(gl.float64)
        begun += last - first
        turn += 1
        sums = parts + 4 * (2 * item + WHICH)
        gl.store(sums, gl.sum(total, 0))
        if HAS_GRADIENTS:
            gl.store(sums + 2, gl.sum(sum_bias, 0))
            gl.store(sums + 3, gl.sum(sum_scale, 0))
    if HAS_GRADIENTS:
        tma.store_wait(pendings=0)


@planned
@gluon.jit(do_not_specialize=["first_row", "rows", "columns", "strip_tiles", "spread"])
def hopper_sigmoid_tile_kernel(
    x_desc, y_desc, out_desc, numbers, target, parts, first_row, rows, columns, strip_tiles, spread,
    RING: gl.constexpr, HAS_GRADIENTS: gl.constexpr, HAS_TARGET: gl.constexpr,
    IS_DIAGONAL: gl.constexpr,
):  # fmt: skip
    KEPT: gl.constexpr = RING.RES if RING.RES > 0 else 1
    SLOTS: gl.constexpr = RING.SLOTS
    BM: gl.constexpr = RING.BM
    BN: gl.constexpr = RING.BN
    BK: gl.constexpr = RING.BK
    HALF: gl.constexpr = BN // 2
    x_kept = gl.allocate_shared_memory(x_desc.dtype, [KEPT, BM, BK], x_desc.layout)
    ring = gl.allocate_shared_memory(y_desc.dtype, [SLOTS, BN, BK], y_desc.layout)
    if HAS_GRADIENTS:
        first = gl.allocate_shared_memory(out_desc.dtype, [BM, HALF], out_desc.layout)
        second = gl.allocate_shared_memory(out_desc.dtype, [BM, HALF], out_desc.layout)
    else:
        first, second = ring, ring
    barriers = new_barriers(RING.SLOTS, RING.RES)
    span = Span(first_row, rows, columns, strip_tiles, spread)
    items = items_of(span, RING)
    gl.warp_specialize(
        [
            (consumer, (
                out_desc, x_kept, ring, first, barriers, numbers, target, parts, span, items, 0,
                RING, HAS_GRADIENTS, HAS_TARGET, IS_DIAGONAL,
            )),
            (consumer, (
                out_desc, x_kept, ring, second, barriers, numbers, target, parts, span, items, 1,
                RING, HAS_GRADIENTS, HAS_TARGET, IS_DIAGONAL,
            )),
            (producer, (x_desc, y_desc, x_kept, ring, barriers, span, items, RING)),
        ],
        [4, 1],
        [240, 24],
    )  # fmt: skip
