"""Launches of Hopper's tile kernels: how shared memory is divided, and the rows into items."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton.arguments import BothSides
from mmcore.backends.triton.hopper.exponential_sums import hopper_sum_exponentials_kernel
from mmcore.backends.triton.hopper.gradient import hopper_store_gradient_kernel
from mmcore.backends.triton.hopper.ring import Ring
from mmcore.backends.triton.hopper.sigmoid_tile import hopper_sigmoid_tile_kernel
from mmcore.backends.triton.inputs import pointer, shape
from mmcore.backends.triton.launch import processors, whole
from mmcore.backends.triton.softmax_similarity.gain import Given
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix
from mmcore.backends.triton.softmax_similarity.norms import Norms

# Rows, columns, and depth of a chunk.
BM = BN = 128
BK = 64
# 384 threads: two warpgroups of 240 registers, the producer's of 24.
OPTIONS = {"num_warps": 4, "maxnreg": 168}
# With more strips of columns than this, an item would have too little work. It does not limit
# matrices whose blocks of rows are too few for all programs.
MOST_STRIPS = 64


class Layout(NamedTuple):
    """Buffers of the ring, and chunks of x that stay; at how many places a strip is begun."""

    SLOTS: int
    RES: int
    spread: int


# They fill shared memory; tiles on their way out take the room of two buffers. Whether E is kept
# changes no bit, because rows are summed in the same order.
SUMS, SUMS_KEPT = Layout(8, 6, 1), Layout(8, 4, 1)
GRADIENT, SIGMOID = Layout(8, 4, 1), Layout(6, 6, 8)


class Walk(NamedTuple):
    """The items of a launch: blocks of rows, times strips of columns."""

    row_blocks: int
    strips: int
    strip_tiles: int
    programs: int

    @staticmethod
    @cache
    def over(rows: int, columns: int, device: torch.device) -> Walk:
        """The strips for which the last program ends earliest; an item costs one extra tile."""
        row_blocks, tiles = whole(rows, BM), whole(columns, BN)
        programs = min(processors(device), row_blocks * tiles)

        def cost(strip_tiles: int) -> int:
            items = row_blocks * whole(tiles, strip_tiles)
            return whole(items, programs) * (strip_tiles + 1)

        most = max(MOST_STRIPS, whole(programs, row_blocks))
        strips = range(1, min(tiles, most) + 1)
        strip_tiles = min((whole(tiles, count) for count in strips), key=cost)
        count = whole(tiles, strip_tiles)
        return Walk(row_blocks, count, strip_tiles, min(programs, row_blocks * count))


def ring_of(layout: Layout, depth: int) -> Ring:
    """The ring for features of a width."""
    chunks = whole(depth, BK)
    return Ring(chunks, min(chunks, layout.RES), layout.SLOTS, BM, BN, BK)


@cache
def box_layout(columns: int, dtype: torch.dtype) -> gl.NVMMASharedLayout:
    """How a box of BM rows lies in shared memory."""
    kind = gl.bfloat16 if dtype == torch.bfloat16 else gl.float16
    return gl.NVMMASharedLayout.get_default_for([BM, columns], kind)


def descriptor(matrix: Tensor, columns: int) -> TensorDescriptor:
    """Of a 16-bit matrix, taken or brought in boxes of BM rows.

    TensorDescriptor.from_tensor checks it once more, which takes longer than a launch.
    """
    made = object.__new__(TensorDescriptor)
    made.__dict__.update(
        base=matrix, shape=matrix.shape, strides=matrix.stride(), block_shape=[BM, columns],
        layout=box_layout(columns, matrix.dtype),
    )  # fmt: skip
    return made


def sum_exponentials(
    matrix: SimilarityMatrix, norms: Norms, slab: slice, rows_of_e: Tensor
) -> tuple[Tensor, Tensor]:
    """Partial sums: (parts, rows of the slab), and (blocks of it, M), or none of columns."""
    inputs, columns, count = matrix.inputs, matrix.size.columns, slab.stop - slab.start
    x = inputs.x
    walk, keeps = Walk.over(count, columns, x.device), rows_of_e.shape[0] > 0
    layout = SUMS_KEPT if keeps else SUMS
    row_sum = x.new_empty((2 * walk.strips, count), dtype=torch.float32)
    held = columns if inputs.has_columns else 0
    col_sum = x.new_empty((walk.row_blocks, held), dtype=torch.float32)
    x_desc, y_desc = descriptor(x, BK), descriptor(inputs.keys, BK)
    kept_desc = descriptor(rows_of_e, BN // 2) if keeps else x_desc
    hopper_sum_exponentials_kernel[(walk.programs,)](
        x_desc, y_desc, kept_desc, norms, inputs.scale, matrix.ids.target,
        BothSides(row_sum, col_sum), slab.start, count, columns, walk.strip_tiles, layout.spread,
        rows_of_e.shape[0], RING=ring_of(layout, x.shape[1]), KEEPS=keeps,
        HAS_TARGET=matrix.recipe.has_target, IS_DIAGONAL=matrix.recipe.pairs.IS_DIAGONAL,
        HAS_COLUMNS=inputs.has_columns, **OPTIONS,
    )  # fmt: skip
    return row_sum, col_sum


def gradient_parts(rows: int, columns: int, device: torch.device) -> int:
    """How many parts of the scale's gradient a chunk of G leaves."""
    walk = Walk.over(rows, columns, device)
    return 2 * walk.row_blocks * walk.strips


def store_gradient(
    matrix: SimilarityMatrix, numbers: Tensor, memory: Tensor, given: Given, first: int,
    out: Tensor, parts: Tensor, first_part: int, *, is_loss: bool, count: int,
) -> None:  # fmt: skip
    """G of the rows from `first` on into `out`, and parts of its sum with the products."""
    x, (rows, columns) = matrix.inputs.x, matrix.size
    walk = Walk.over(out.shape[0], columns, x.device)
    hopper_store_gradient_kernel[(walk.programs,)](
        descriptor(x, BK), descriptor(matrix.inputs.keys, BK), descriptor(out, BN // 2), numbers,
        memory, given, matrix.ids.target, parts, first_part, first, out.shape[0], rows, columns,
        walk.strip_tiles, GRADIENT.spread, RING=ring_of(GRADIENT, x.shape[1]),
        HAS_TARGET=matrix.recipe.has_target, IS_DIAGONAL=matrix.recipe.pairs.IS_DIAGONAL,
        IS_LOSS=is_loss, IS_FLOAT16=x.dtype == torch.float16, COUNT=count, **OPTIONS,
    )  # fmt: skip


def sigmoid_parts(
    inputs: SimilarityInputs, numbers: Tensor, first: int, count: int, out: Tensor | None,
    is_diagonal: bool,
) -> Tensor:  # fmt: skip
    """Parts of the sums of sigmoid_similarity/tile.py, (parts, 4); fills `out`, if there is one."""
    x, columns = inputs.x, shape(inputs)[1]
    walk = Walk.over(count, columns, x.device)
    parts = x.new_empty((2 * walk.row_blocks * walk.strips, 4), dtype=torch.float64)
    x_desc = descriptor(x, BK)
    hopper_sigmoid_tile_kernel[(walk.programs,)](
        x_desc, descriptor(inputs.keys, BK), x_desc if out is None else descriptor(out, BN // 2),
        numbers, pointer(inputs.target, x), parts, first, count, columns, walk.strip_tiles,
        SIGMOID.spread, RING=ring_of(SIGMOID, x.shape[1]), HAS_GRADIENTS=out is not None,
        HAS_TARGET=is_diagonal or inputs.target is not None, IS_DIAGONAL=is_diagonal, **OPTIONS,
    )  # fmt: skip
    return parts
