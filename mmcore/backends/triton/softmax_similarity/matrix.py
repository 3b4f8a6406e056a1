"""One similarity matrix as the launches of softmax_similarity take it."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton import hopper, launch
from mmcore.backends.triton.arguments import (
    Ids,
    SideBiases,
    Size,
)
from mmcore.backends.triton.inputs import (
    Operand,
    ids,
    operands,
    pairs,
    pointer,
    prepared,
    product_dtype,
    product_precision,
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

# Launches of as many kinds of calls are remembered; a training loop has a few.
MOST_RECIPES = 256
_recipes: dict[tuple[object, ...], Recipe] = {}


class Recipe:
    """What launches derive from shapes, strides and dtypes, which a training loop repeats."""

    def __init__(self, inputs: SimilarityInputs, is_diagonal: bool) -> None:
        which = pairs(inputs)
        self.size, self.strides = Size(*shape(inputs)), strides(inputs)
        self.pairs = which._replace(IS_DIAGONAL=True) if is_diagonal else which
        self.sides, self.which_biases = sides(inputs), which_biases(inputs)
        self.dtype = product_dtype(inputs)  # in which operands are multiplied
        self.has_target = which.HAS_TARGET or is_diagonal
        self.is_hopper = hopper.serves(inputs)
        self.tiles: dict[str, ProductTile] = {}
        self.settings: dict[ProductTile, dict[str, object]] = {}
        self.plans: dict[tuple[object, ...], Any] = {}  # of backwards (chunks.py)


class SimilarityMatrix(NamedTuple):
    """What launches derive from their inputs, once."""

    inputs: SimilarityInputs  # with operands as they are multiplied
    recipe: Recipe
    size: Size
    ids: Ids
    bias: Tensor  # 0-D, or a dummy
    row_side: SideBiases
    col_side: SideBiases

    def tile(self, kind: str) -> ProductTile:
        """For a kind of epilogue (launch.py)."""
        found = self.recipe.tiles.get(kind)
        if found is None:
            found = self.recipe.tiles[kind] = tile_for(self.inputs, kind)
        return found

    def operands(self, tile: ProductTile) -> tuple[Operand, Operand]:
        """x and y."""
        return operands(self.inputs, tile)

    def settings(self, tile: ProductTile) -> dict[str, object]:
        """What a kernel is compiled for."""
        found = self.recipe.settings.get(tile)
        if found is None:
            found = settings(self.inputs, tile, self.recipe.pairs)
            self.recipe.settings[tile] = found
        return found


def matrix_of(inputs: SimilarityInputs, *, is_diagonal: bool = False) -> SimilarityMatrix:
    """That of an op's inputs; `is_diagonal`: row i belongs to column i, and no target says so."""
    inputs = rounded(prepared(inputs))
    x = inputs.x
    key = _key(inputs, is_diagonal)
    recipe = _recipes.get(key)
    if recipe is None:
        if len(_recipes) >= MOST_RECIPES:
            _recipes.clear()
        recipe = _recipes[key] = Recipe(inputs, is_diagonal)
    row_side = side_biases(inputs.row_bias, x)
    col_side = row_side
    if inputs.y is not None and inputs.col_bias is not inputs.row_bias:
        col_side = side_biases(inputs.col_bias, x)
    return SimilarityMatrix(
        inputs, recipe, recipe.size, ids(inputs), pointer(inputs.bias, x), row_side, col_side
    )


def _key(inputs: SimilarityInputs, is_diagonal: bool) -> tuple[object, ...]:
    """All that a recipe depends on."""
    x, y = inputs.x, inputs.y
    of_y = None if y is None else (y.shape, y.stride(), launch.is_aligned(y))
    return (
        x.shape, x.stride(), x.dtype, x.device, launch.is_aligned(x), of_y, is_diagonal,
        inputs.bias is None, inputs.row_bias is None, inputs.col_bias is None,
        inputs.target is None, inputs.row_label is None, inputs.row_group is None,
        inputs.denominator, inputs.has_columns,
        product_precision(x, x.dtype) if x.dtype == torch.float32 else "",
        launch.is_interpreted(), *launch.FORCED_TILES.items(),
    )  # fmt: skip
