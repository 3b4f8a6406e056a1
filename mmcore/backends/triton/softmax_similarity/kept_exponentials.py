"""Exponentials that softmax_similarity keeps for its backward: rows of E, rounded to bfloat16.

    G_ij = E_ij·(R_i + C_j): where E was kept, the backward computes no product to form G.

kept_size.py says how many rows are kept. Rows and columns are filled up to whole tiles, so that
kernels store and load a tile without a mask for the matrix's edges.
"""

from __future__ import annotations

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mmcore.backends.triton.inputs import Operand
from mmcore.backends.triton.kept_size import BLOCK_COLUMNS, whole_blocks
from mmcore.backends.triton.tuned_tiles import ProductTile


def as_rows(kept: Tensor, columns: int) -> Tensor:
    """The memory as rows of E: whole blocks, some of which lie beyond the matrix."""
    return kept.view(torch.bfloat16).view(-1, whole_blocks(columns, BLOCK_COLUMNS))


def as_operand(rows_of_e: Tensor, tile: ProductTile) -> Operand:
    """E as the kernels take it: a pointer, or a tensor descriptor."""
    if len(rows_of_e) == 0 or not tile.USES_DESCRIPTORS:
        return rows_of_e
    return TensorDescriptor.from_tensor(rows_of_e, [tile.BM, tile.BN])
