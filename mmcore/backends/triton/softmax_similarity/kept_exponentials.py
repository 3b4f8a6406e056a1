"""What softmax_similarity keeps for its backward: numbers of the matrix, and exponentials.

    G_ij = E_ij·(R_i + C_j): where E was kept, the backward computes no product to form G.

Rows of E, rounded to bfloat16, come first: kept_size.py says how many. Rows and columns are filled
up to whole tiles, so that kernels store and load a tile without a mask for the matrix's edges.
Behind them are `Numbers` (shared_shift.py), with which the backward need not read x and y for their
norms. A forward that may keep nothing leaves both to the backward.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.triton.inputs import Operand, descriptor
from mmcore.backends.triton.kept_size import BLOCK_COLUMNS, NUMBERS, PER_FLOAT32, whole_blocks
from mmcore.backends.triton.tuned_tiles import ProductTile


def rows_and_numbers(kept: Tensor, columns: int, after: int = NUMBERS) -> tuple[Tensor, Tensor]:
    """Rows of E, some of which lie beyond the matrix, and `after` numbers, or fresh memory."""
    size, stride = max(0, kept.numel() - after), whole_blocks(columns, BLOCK_COLUMNS)
    shape = (size * PER_FLOAT32 // stride, stride)
    rows_of_e = kept.view(torch.bfloat16).as_strided(shape, (stride, 1))
    return rows_of_e, kept[size:] if kept.numel() else kept.new_empty(after)


def as_operand(rows_of_e: Tensor, tile: ProductTile) -> Operand:
    """E as the kernels take it: a pointer, or a tensor descriptor."""
    if rows_of_e.shape[0] == 0 or not tile.USES_DESCRIPTORS:
        return rows_of_e
    return descriptor(rows_of_e, [tile.BM, tile.BN])
