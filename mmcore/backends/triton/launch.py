"""Tile sizes, and what every launch shares."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends import workspace


class RowTile(NamedTuple):
    """What one program of a row-wise kernel takes."""

    ROWS: int
    COLUMNS: int


class ProductTile(NamedTuple):
    """What one program of a product takes at a time: BM × BN numbers, BK deep."""

    BM: int
    BN: int
    BK: int
    num_warps: int
    num_stages: int


# 4,096 numbers a program: 32 for each thread of four warps, enough loads in flight.
NUMBERS_PER_PROGRAM = 4096
# What an epilogue holds of each logit besides its float32 sum decides how large a tile fits into
# 255 registers a thread; tests/test_triton_assembly.py says when it does not. "sums": exponentials
# and their sums; "gradient": G; "narrow": everything else.
HALF_PRECISION_TILES = {
    "sm_80": dict.fromkeys(("sums", "gradient", "narrow"), ProductTile(128, 64, 64, 8, 3)),
    "sm_90": {
        "sums": ProductTile(128, 256, 64, 8, 3),
        "gradient": ProductTile(128, 128, 64, 8, 3),
        "narrow": ProductTile(128, 64, 64, 8, 3),
    },
    "sm_100": {
        "sums": ProductTile(128, 128, 64, 8, 3),
        "gradient": ProductTile(128, 128, 64, 8, 3),
        "narrow": ProductTile(128, 64, 64, 8, 3),
    },
    "hip": dict.fromkeys(("sums", "gradient", "narrow"), ProductTile(128, 128, 32, 8, 2)),
}
# float32 products without matrix units, and the interpreter's, whose time goes by programs.
FLOAT32_TILE = ProductTile(64, 64, 32, 4, 2)
INTERPRETED_TILE = ProductTile(128, 128, 128, 4, 1)


def row_tile(columns: int) -> RowTile:
    """Whole rows where they are short, pieces of one row where they are long."""
    width = min(triton.next_power_of_2(columns), NUMBERS_PER_PROGRAM)
    return RowTile(NUMBERS_PER_PROGRAM // width, width)


def is_interpreted() -> bool:
    """Whether kernels run in Triton's interpreter, on CPU tensors."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def product_tile(x: Tensor, multiplies_16_bits: bool, kind: str) -> ProductTile:
    """The tile of products for a device, a precision and a kind of epilogue."""
    if is_interpreted():
        return INTERPRETED_TILE
    if not multiplies_16_bits:
        return FLOAT32_TILE
    if torch.version.hip is not None:
        return HALF_PRECISION_TILES["hip"][kind]
    major, _ = torch.cuda.get_device_capability(x.device)
    architecture = "sm_80" if major < 9 else "sm_90" if major == 9 else "sm_100"
    return HALF_PRECISION_TILES[architecture][kind]


def unit_stride(tensor: Tensor) -> Tensor:
    """The tensor itself, or a copy where neighbours of a row are not neighbours in memory."""
    return tensor if tensor.stride(-1) == 1 else tensor.contiguous()


def chunk_rows(rows: int, columns: int, itemsize: int, block: int) -> int:
    """Rows of G that the workspace holds, in whole blocks, at least one."""
    whole = workspace.current() // (columns * itemsize) // block * block
    return max(block, min(whole, triton.cdiv(rows, block) * block))
