"""What the epilogues of Hopper's tile kernels share: halves of tiles, targets, stores.

A warpgroup holds a tile of 128 × 128 numbers, 128 to a thread; what is stored goes through shared
memory by halves, from where the copy engine takes it and clips what lies beyond the matrix.
"""

from __future__ import annotations

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, tma

# Triton 3.9 and 3.6 have different names for it.
store_box = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global


@gluon.jit
def exp2_flushed(x):
    """2^x, 0 below 2^-126, in one instruction."""
    return gl.inline_asm_elementwise(
        "ex2.approx.ftz.f32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=True, pack=1
    )


@gluon.jit
def unmerged(x):
    """x, in a form that the compiler does not recognise as x.

    Otherwise it would compute what two branches share before both of them, for a whole tile at
    once, and spill.
    """
    return gl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=f,f", [x], dtype=gl.float32, is_pure=False, pack=1
    )


@gluon.jit
def halves(tile, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr):
    """The left and the right half of a tile: no number moves between threads."""
    left, right = tile.reshape([BM, 2, BN // 2]).permute((0, 2, 1)).split()
    left = gl.convert_layout(left, layout, assert_trivial=True)
    return left, gl.convert_layout(right, layout, assert_trivial=True)


@gluon.jit
def whole(left, right, BM: gl.constexpr, BN: gl.constexpr, layout: gl.constexpr):
    """A tile of BN columns from its halves."""
    tile = gl.join(left, right).permute((0, 2, 1)).reshape([BM, BN])
    return gl.convert_layout(tile, layout, assert_trivial=True)


@gluon.jit
def store_half(desc, staging, half, i, j):
    """Through `staging`, which the copy engine may still read afterwards."""
    narrow = half.to(desc.dtype)
    tma.store_wait(pendings=0)
    staging.store(narrow)
    fence_async_shared()
    store_box(desc, [i, j], staging)


@gluon.jit
def load_row_targets(
    target, i, in_rows, columns, HAS_TARGET: gl.constexpr, IS_DIAGONAL: gl.constexpr
):
    """Targets of rows, -1 without one, and the least and the largest column that they name."""
    if IS_DIAGONAL:
        target_i, least, largest = gl.where(in_rows, i, -1), gl.min(i, 0), gl.max(i, 0)
    elif HAS_TARGET:
        wide = gl.load(target + i, mask=in_rows, other=-1)
        target_i = gl.where((wide >= 0) & (wide < columns), wide, -1).to(gl.int32)
        least = gl.min(gl.where(target_i < 0, 2147483647, target_i), 0)
        largest = gl.max(target_i, 0)
    else:
        target_i = i * 0 - 1
        least, largest = gl.to_tensor(2147483647), gl.to_tensor(-1)
    return target_i, least, largest
