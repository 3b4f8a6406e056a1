"""One similarity matrix as the launches of softmax_similarity take it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import (
    Ids,
    SideBiases,
    Sides,
    Size,
    Strides,
    WhichBiases,
    WhichPairs,
)
from mmcore.backends.triton.inputs import (
    Operand,
    ids,
    operands,
    pairs,
    pointer,
    prepared,
    product_dtype,
    rounded,
    settings,
    shape,
    sides,
    strides,
    tile_for,
    which_biases,
)
from mmcore.backends.triton.softmax_similarity.shared_shift import side_biases
from mmcore.backends.triton.tuned_tiles import ProductTile


class SimilarityMatrix(NamedTuple):
    """What launches derive from their inputs, once."""

    inputs: SimilarityInputs  # with operands as they are multiplied
    size: Size
    strides: Strides
    ids: Ids
    pairs: WhichPairs
    sides: Sides
    which_biases: WhichBiases
    bias: Tensor  # 0-D, or a dummy
    row_side: SideBiases
    col_side: SideBiases
    is_hopper: bool

    @property
    def dtype(self) -> torch.dtype:
        """In which operands are multiplied."""
        return product_dtype(self.inputs)

    @property
    def has_target(self) -> bool:
        """Whether a row has at most one positive, named or on the diagonal."""
        return self.pairs.HAS_TARGET or self.pairs.IS_DIAGONAL

    def tile(self, kind: str) -> ProductTile:
        """For a kind of epilogue (launch.py)."""
        return tile_for(self.inputs, kind)

    def operands(self, tile: ProductTile) -> tuple[Operand, Operand]:
        """x and y."""
        return operands(self.inputs, tile)

    def settings(self, tile: ProductTile) -> dict[str, object]:
        """What a kernel is compiled for."""
        return settings(self.inputs, tile, self.pairs)


def matrix_of(inputs: SimilarityInputs, *, is_diagonal: bool = False) -> SimilarityMatrix:
    """That of an op's inputs; `is_diagonal`: row i belongs to column i, and no target says so."""
    inputs = rounded(prepared(inputs))
    x = inputs.x
    row_side = side_biases(inputs.row_bias, x)
    col_side = row_side if inputs.y is None else side_biases(inputs.col_bias, x)
    which = pairs(inputs)
    return SimilarityMatrix(
        inputs, Size(*shape(inputs)), strides(inputs), ids(inputs),
        which._replace(IS_DIAGONAL=True) if is_diagonal else which, sides(inputs),
        which_biases(inputs), pointer(inputs.bias, x), row_side, col_side, hopper.serves(inputs),
    )  # fmt: skip
