"""Exponentials kept from the forward for the backward: whole rows of E, rounded to bfloat16.

    G_ij = E_ij·(R_i + C_j): with E at hand the backward multiplies nothing to find it.

They are kept where products are of bfloat16, whose rounding they share; float32 and float16
gradients would lose digits. A matrix that is its own transpose keeps none: half of its products are
spared already. Half the workspace is kept at most, because the
backward needs a chunk of G beside it. Rows and columns are filled up to whole tiles, so that a tile
is stored and loaded without a look at the matrix's edges.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Every tile's sides divide these.
BLOCK_ROWS, BLOCK_COLUMNS = 128, 256
ITEMSIZE = torch.bfloat16.itemsize
PER_FLOAT32 = torch.float32.itemsize // ITEMSIZE


def kept_tiles(
    workspace: int, rows: int, columns: int, is_bfloat16: bool, is_half_enough: bool
) -> int:
    """How many float32 numbers hold what is kept."""
    if not is_bfloat16 or is_half_enough:
        return 0
    stride = _whole(columns, BLOCK_COLUMNS)
    held = workspace // 2 // (ITEMSIZE * stride) // BLOCK_ROWS * BLOCK_ROWS
    size: int = min(_whole(rows, BLOCK_ROWS), held) * stride // PER_FLOAT32
    return size


def as_rows(kept: Tensor, columns: int) -> Tensor:
    """The memory as rows of E: whole blocks of them, beyond the matrix too."""
    return kept.view(torch.bfloat16).view(-1, _whole(columns, BLOCK_COLUMNS))


def _whole(size: int, block: int) -> int:
    return (size + block - 1) // block * block
