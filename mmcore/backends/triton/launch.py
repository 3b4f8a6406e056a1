"""Tile sizes, and what every launch shares."""

from __future__ import annotations

import os
from collections.abc import Callable
from functools import cache
from typing import NamedTuple, TypeVar

import torch
import triton
from torch import Tensor

from mmcore.backends import workspace
from mmcore.backends.triton import tuned_tiles
from mmcore.backends.triton.tuned_tiles import ProductTile

Result = TypeVar("Result")


class RowTile(NamedTuple):
    """The rows and columns that one program of a row-wise kernel takes at a time."""

    ROWS: int
    COLUMNS: int


# 4,096 numbers a program: 32 for each thread of four warps, enough loads in flight.
NUMBERS_PER_PROGRAM = 4096
# A thread has 255 registers. How large a tile fits depends on the numbers that the epilogue holds
# for each logit besides its float32 sum. tests/test_triton_assembly.py fails where a tile does not.
WIDE = ProductTile(128, 256, 64, 8, 3)
SQUARE = ProductTile(128, 128, 64, 8, 3)
NARROW = ProductTile(128, 64, 64, 8, 3)
LOW = ProductTile(64, 128, 64, 8, 3)
SMALL = ProductTile(64, 64, 64, 8, 3)
STREAMED = ProductTile(64, 128, 64, 4, 3)
STATISTICS = ProductTile(64, 64, 32, 8, 1)
AMD = ProductTile(128, 128, 32, 8, 2)
# Kinds of epilogues. "sums": exponentials and their sums. "gradient": G. "kept": G from kept
# exponentials; it waits for memory, so small tiles are better, of which more programs run at once,
# and without products it has registers enough for addresses. "sigmoid": sums and G at once.
# "running": maxima along the way. "statistics": what follows the sums, where hardly any block has
# products. "heavy": epilogues that compare labels, or that serve a tile and its transpose at once.
HEAVY = {kind: f"heavy {kind}" for kind in ("sums", "gradient", "sigmoid")}
HEAVY |= {"running": "running", "statistics": "statistics", "kept": "heavy gradient"}


def _tiles(
    sums: ProductTile, gradient: ProductTile, narrow: ProductTile, heavy_gradient: ProductTile,
    small: ProductTile, *, kept: ProductTile = STREAMED, statistics: ProductTile = STATISTICS,
    **changes: bool,
) -> dict[str, ProductTile]:  # fmt: skip
    tiles = {
        "sums": sums, "gradient": gradient, "sigmoid": narrow, "running": narrow,
        "heavy sums": narrow, "heavy gradient": heavy_gradient, "heavy sigmoid": small,
    }  # fmt: skip
    described = {kind: tile._replace(**changes) for kind, tile in tiles.items()}
    return described | {"kept": kept, "statistics": statistics}


HALF_PRECISION_TILES = {
    "sm_80": _tiles(NARROW, NARROW, NARROW, NARROW, SMALL),
    "sm_90": _tiles(WIDE, SQUARE, NARROW, NARROW, SMALL, USES_DESCRIPTORS=True),
    "sm_100": _tiles(SQUARE, SQUARE, NARROW, LOW, SMALL, USES_DESCRIPTORS=True),
    "hip": _tiles(*[AMD] * 5, kept=AMD, statistics=STATISTICS._replace(num_warps=4, num_stages=2)),
}
MOST_COLUMNS_BY_POINTERS = 128
# 16 bytes of 16-bit numbers.
ALIGNED_COLUMNS = 8
# By kind: the tiles that a search (mmcore/tuning.py) is trying.
FORCED_TILES: dict[str, ProductTile] = {}
# Of a tile of G, by which the least chunk is measured.
TILE_COLUMNS = 128
# Fewer blocks of rows than this would leave the largest of GPUs idle at the end of every launch.
FEWEST_BLOCKS = 64
# For float32 products without matrix units; for the interpreter, where every program costs time.
FLOAT32_TILE = ProductTile(64, 64, 32, 4, 2)
INTERPRETED_TILE = ProductTile(128, 128, 128, 4, 1)


@cache
def row_tile(columns: int) -> RowTile:
    """Whole rows where they are short, pieces of one row where they are long."""
    width = min(triton.next_power_of_2(columns), NUMBERS_PER_PROGRAM)
    return RowTile(NUMBERS_PER_PROGRAM // width, width)


@cache
def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def product_tile(x: Tensor, product_dtype: torch.dtype, kind: str) -> ProductTile:
    """The tile of products for a device, a dtype and a kind of epilogue."""
    if kind in FORCED_TILES:
        return FORCED_TILES[kind]
    if is_interpreted():
        return INTERPRETED_TILE
    if product_dtype == torch.float32:
        return FLOAT32_TILE
    tuned = tuned_tiles.find(x.device, kind, x.shape[1], product_dtype)
    if tuned is not None:
        return tuned
    if torch.version.hip is not None:
        return HALF_PRECISION_TILES["hip"][kind]
    major, _ = torch.cuda.get_device_capability(x.device)
    architecture = "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"
    return HALF_PRECISION_TILES[architecture][kind]


def by_pointers(tile: ProductTile) -> ProductTile:
    """The tile for a launch without the copy engine, smaller because addresses take registers."""
    columns = min(tile.BN, MOST_COLUMNS_BY_POINTERS)
    return tile._replace(BN=columns, USES_DESCRIPTORS=False)


@cache
def has_tensor_float_32(device: torch.device) -> bool:
    """Whether Triton multiplies float32 on matrix units of this GPU. On AMD: gfx942 only."""
    if torch.version.hip is None or device.type == "cpu":
        return True
    return torch.cuda.get_device_properties(device).gcnArchName.startswith("gfx942")


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy if the numbers of a row are not neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def is_aligned(matrix: Tensor) -> bool:
    """Whether a tensor descriptor may describe it: every row begins at a multiple of 16 bytes."""
    stride = matrix.stride(0)
    begins = matrix.data_ptr() | (stride * matrix.element_size())
    # Rows may share memory, as after expand(): pointers serve them.
    return stride >= matrix.shape[1] and begins % 16 == 0


def whole(size: int, block: int) -> int:
    """How many blocks hold a size. triton.cdiv is the same and takes microseconds."""
    return -(-size // block)


@cache
def processors(device: torch.device) -> int:
    """Multiprocessors of the GPU; one in the interpreter."""
    if device.type == "cpu":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def chunk_rows(x: Tensor, columns: int, itemsize: int, block: int, kept_bytes: int = 0) -> int:
    """Rows of G that the workspace holds beside what is kept: whole blocks.

    At least so many that every multiprocessor has a tile: a smaller chunk would leave some idle.
    """
    rows, held = x.shape[0], workspace.current(x.device.type) - kept_bytes
    blocks = held // (columns * itemsize) // block
    least = whole(processors(x.device), whole(columns, TILE_COLUMNS))
    return block * min(max(blocks, least), whole(rows, block))


def chunk_of_gradient(x: Tensor, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Memory for G, whose rows begin where the copy engine can store them."""
    stride = whole(columns, ALIGNED_COLUMNS) * ALIGNED_COLUMNS
    memory = x.new_empty((rows, stride), dtype=dtype)
    return memory if stride == columns else memory[:, :columns]


def slab_rows(x: Tensor, columns: int, block: int, sums: int) -> int:
    """Rows of a forward's launch: the workspace holds `sums` sums of columns for every block."""
    held = workspace.current(x.device.type) // (sums * columns * torch.float32.itemsize)
    return min(x.shape[0], block * max(FEWEST_BLOCKS, held))


def within_memory(run: Callable[[int], Result], size: int, block: int) -> Result:
    """run(size) with chunks of `size` rows; half as many where memory runs out, down to a block."""
    while True:
        try:
            return run(size)
        except torch.OutOfMemoryError:
            if size <= block:
                raise
        size = max(block, size // 2 // block * block)
