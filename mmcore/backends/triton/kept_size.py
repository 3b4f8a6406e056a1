"""How many float32 numbers a forward keeps for its backward, by family. Imports no Triton.

softmax_similarity keeps whole rows of E (softmax_similarity/kept_exponentials.py), rounded to
bfloat16, where products are of bfloat16: E then has the rounding that the products have anyway;
float32 and float16 gradients would lose digits. A matrix that is its own transpose keeps no E,
because half of its products are spared already. At most half the workspace is kept, because the
backward needs a chunk of G beside it. A few numbers of the matrix are kept in any case.

clip keeps the same, and the terms of G, which are O(N) (softmax_similarity/terms_memory.py).

sigmoid_similarity and siglip keep both products with G (sigmoid_similarity/cached_gradients.py).
"""

from __future__ import annotations

import torch

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.clip import ClipInputs
from mmcore.backends.reference.product_similarity import ProductInputs
from mmcore.backends.reference.siglip import SiglipInputs
from mmcore.backends.workspace import if_it_fits

# Rows and columns of E are filled up to multiples of these, which the sides of every tile divide.
BLOCK_ROWS, BLOCK_COLUMNS = 128, 256
ITEMSIZE = torch.bfloat16.itemsize
PER_FLOAT32 = torch.float32.itemsize // ITEMSIZE
# softmax_similarity/shared_shift.py: NUMBERS. softmax_similarity/terms_memory.py: what precedes the
# terms, the terms of a row or column of a loss, and how many rows share a flag.
NUMBERS, HEADER, LOSS_TERMS, FLAGGED = 8, 16, 4, 64


def softmax_similarity(workspace: int, inputs: SimilarityInputs) -> int:
    """As many rows of E as half the workspace holds, and the numbers of the matrix."""
    if inputs.precision != "medium" or inputs.is_half_enough:
        return NUMBERS
    return rows_of_exponentials(workspace, inputs.x.shape[0], inputs.keys.shape[0]) + NUMBERS


def clip(workspace: int, inputs: ClipInputs) -> int:
    """As softmax_similarity, and the terms of G."""
    rows = inputs.x.shape[0]
    held = rows_of_exponentials(workspace, rows, rows) if inputs.precision == "medium" else 0
    return held + NUMBERS + terms_size(rows, rows, LOSS_TERMS)


def terms_size(rows: int, columns: int, count: int) -> int:
    """The memory of `count` numbers of each row and column, targets and flags."""
    flags = whole_blocks(rows, FLAGGED) // FLAGGED + whole_blocks(columns, FLAGGED) // FLAGGED
    return HEADER + count * (rows + columns) + rows + flags


def product_similarity(workspace: int, inputs: ProductInputs) -> int:
    """As softmax_similarity, of each modality's matrix."""
    rows = inputs.features[0].shape[0]
    return rows_of_exponentials(workspace, rows, rows) if inputs.precision == "medium" else 0


def rows_of_exponentials(workspace: int, rows: int, columns: int) -> int:
    """The size of as many rows of E as half the workspace holds, in whole blocks."""
    stride = whole_blocks(columns, BLOCK_COLUMNS)
    held = workspace // 2 // (ITEMSIZE * stride) // BLOCK_ROWS * BLOCK_ROWS
    kept_rows = torch.sym_min(whole_blocks(rows, BLOCK_ROWS), held)
    size: int = kept_rows * stride // PER_FLOAT32
    return size


def sigmoid_similarity(workspace: int, inputs: SimilarityInputs) -> int:
    """The gradients of x and y, if the workspace holds them and positives are targets.

    Cached gradients fit only the upstream gradients (a, −a), which the host of a GPU cannot check.
    With targets the backward corrects them for any others.
    """
    size = inputs.x.numel() + (0 if inputs.y is None else inputs.y.numel())
    return 0 if inputs.target is None else if_it_fits(size, workspace)


def siglip(workspace: int, inputs: SiglipInputs) -> int:
    """The gradients of x and y, if the workspace holds them."""
    return if_it_fits(inputs.x.numel() + inputs.y.numel(), workspace)


def whole_blocks(size: int, block: int) -> int:
    """`size` filled up to a multiple of `block`."""
    return (size + block - 1) // block * block
