"""What launches over a similarity matrix derive from its inputs: operands, tile, ids, switches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mmcore.backends.ids import count_positives, ranks
from mmcore.backends.inputs import Gradients, SimilarityInputs
from mmcore.backends.triton.arguments import (
    Biases,
    Ids,
    Sides,
    Strides,
    Tile,
    WhichBiases,
    WhichPairs,
)
from mmcore.backends.triton.launch import (
    HEAVY,
    by_pointers,
    has_tensor_float_32,
    is_aligned,
    is_interpreted,
    product_tile,
    unit_stride,
)
from mmcore.backends.triton.tuned_tiles import ProductTile

# How a kernel takes a matrix: by a pointer or by a descriptor.
Operand: TypeAlias = Tensor | TensorDescriptor


def prepared(inputs: SimilarityInputs) -> SimilarityInputs:
    """As the kernels take them: rows without gaps, ids as ranks, columns' vectors filled in."""
    x, y = unit_stride(inputs.x), None if inputs.y is None else unit_stride(inputs.y)
    inputs = inputs.spelled_out()
    if x is not inputs.x or y is not inputs.y:
        inputs = inputs._replace(x=x, y=y)
    if inputs.row_label is not None and inputs.col_label is not None:
        row, col = ranks(inputs.row_label, inputs.col_label)
        inputs = inputs._replace(row_label=row, col_label=col)
    if inputs.row_group is not None and inputs.col_group is not None:
        row, col = ranks(inputs.row_group, inputs.col_group)
        inputs = inputs._replace(row_group=row, col_group=col)
    return inputs


def shape(inputs: SimilarityInputs) -> tuple[int, int]:
    """N and M."""
    return inputs.x.shape[0], inputs.keys.shape[0]


def rounds_operands(inputs: SimilarityInputs) -> bool:
    """Whether float32 operands are rounded to bfloat16."""
    return inputs.precision == "medium" and inputs.x.dtype == torch.float32


def product_dtype(inputs: SimilarityInputs) -> torch.dtype:
    """The dtype in which operands are multiplied."""
    return torch.bfloat16 if rounds_operands(inputs) else inputs.x.dtype


def rounded(inputs: SimilarityInputs) -> SimilarityInputs:
    """With copies of x and y in the dtype in which they are multiplied.

    Tiles then need not pass through registers on their way to the matrix units.
    """
    if not rounds_operands(inputs):
        return inputs
    y = None if inputs.y is None else inputs.y.to(torch.bfloat16)
    return inputs._replace(x=inputs.x.to(torch.bfloat16), y=y)


def tile_for(inputs: SimilarityInputs, kind: str) -> ProductTile:
    """The tile of products for a kind of epilogue (launch.py)."""
    if inputs.y is None or inputs.row_label is not None:
        kind = HEAVY[kind]
    tile = product_tile(inputs.x, product_dtype(inputs), kind)
    if tile.USES_DESCRIPTORS and not may_use_descriptors(inputs):
        return by_pointers(tile)
    return tile


def may_use_descriptors(inputs: SimilarityInputs) -> bool:
    """Whether rows begin at multiples of 16 bytes, which the GPU's copy engine needs."""
    return is_aligned(inputs.x) and is_aligned(inputs.keys)


def operands(inputs: SimilarityInputs, tile: ProductTile) -> tuple[Operand, Operand]:
    """x and y as the kernels take them: pointers, or tensor descriptors."""
    if not tile.USES_DESCRIPTORS:
        return inputs.x, inputs.keys
    return (
        descriptor(inputs.x, [tile.BM, tile.BK]),
        descriptor(inputs.keys, [tile.BN, tile.BK]),
    )


def descriptor(matrix: Tensor, block: list[int]) -> TensorDescriptor:
    """TensorDescriptor.from_tensor without its checks, which take longer than a launch."""
    made = object.__new__(TensorDescriptor)
    made.__dict__.update(
        base=matrix, shape=matrix.shape, strides=matrix.stride(), block_shape=block
    )
    return made


def ids(inputs: SimilarityInputs) -> Ids:
    """Target, labels and groups; x, a dummy pointer, replaces missing ones."""
    if inputs.target is None and inputs.row_label is None and inputs.row_group is None:
        return Ids(inputs.x, inputs.x, inputs.x, inputs.x, inputs.x)
    vectors = (
        inputs.target, inputs.row_label, inputs.col_label, inputs.row_group, inputs.col_group,
    )  # fmt: skip
    return Ids(*(pointer(vector, inputs.x) for vector in vectors))


def pointer(tensor: Tensor | None, dummy: Tensor) -> Tensor:
    """The tensor without gaps; `dummy`, which kernels do not read, where there is none."""
    return dummy if tensor is None else tensor.contiguous()


def biases(inputs: SimilarityInputs) -> Biases:
    """The scalar, those of rows and of columns."""
    every = (inputs.bias, inputs.row_bias, inputs.col_bias)
    return Biases(*(pointer(bias, inputs.x) for bias in every))


def which_biases(inputs: SimilarityInputs) -> WhichBiases:
    """Which of them there are."""
    return WhichBiases(
        inputs.bias is not None, inputs.row_bias is not None, inputs.col_bias is not None
    )


def sides(inputs: SimilarityInputs) -> Sides:
    """The sides of softmax statistics. Of a symmetric matrix, sums of columns are sums of rows."""
    is_half = inputs.is_half_enough
    return Sides(
        inputs.has_columns or is_half, is_half, inputs.row_bias is not None,
        inputs.col_bias is not None,
    )  # fmt: skip


def strides(inputs: SimilarityInputs) -> Strides:
    """Of x and y."""
    return Strides(inputs.x.stride(0), inputs.keys.stride(0))


def pairs(inputs: SimilarityInputs) -> WhichPairs:
    """How positives are named, and which pairs the denominators count."""
    return WhichPairs(
        inputs.denominator, inputs.target is not None, inputs.row_label is not None,
        inputs.row_group is not None,
    )  # fmt: skip


def settings(
    inputs: SimilarityInputs, tile: ProductTile, which: WhichPairs | None = None
) -> dict[str, object]:
    """What every kernel over the matrix is compiled for."""
    dtype = product_dtype(inputs)
    return {
        "PAIRS": pairs(inputs) if which is None else which,
        "TILE": Tile(
            tile.BM, tile.BN, tile.BK, tile.USES_DESCRIPTORS, inputs.x.shape[1],
            is_interpreted() and dtype == torch.bfloat16, dtype == torch.float32,
            product_precision(inputs.x, dtype),
        ),
        "num_warps": tile.num_warps,
        "num_stages": tile.num_stages,
    }  # fmt: skip


def count_row_positives(inputs: SimilarityInputs) -> Tensor | None:
    """How many positives labels give each row; None without labels."""
    if inputs.row_label is None or inputs.col_label is None:
        return None
    return count_positives(inputs.row_label, inputs.col_label, inputs.row_group, inputs.col_group)


def count_col_positives(inputs: SimilarityInputs) -> Tensor | None:
    """How many positives labels give each column; None without labels."""
    if inputs.row_label is None or inputs.col_label is None:
        return None
    return count_positives(inputs.col_label, inputs.row_label, inputs.col_group, inputs.row_group)


def product_precision(x: Tensor, product_dtype: torch.dtype) -> str:
    """How matrix units may multiply float32, as torch is set; 16-bit products have one way."""
    if product_dtype != torch.float32 or not has_tensor_float_32(x.device):
        return "ieee"
    try:
        return "tf32" if torch.get_float32_matmul_precision() == "high" else "ieee"
    except RuntimeError:  # set by torch's newer switches, which the older one does not know
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def finished(
    values: Sequence[Tensor | None], likes: Sequence[Tensor | None], wanted: Sequence[bool],
    rounds: bool,
) -> Gradients:  # fmt: skip
    """The gradients that are wanted, in the shapes of their inputs and, if `rounds`, dtypes."""
    return tuple(
        rounded_as(value, like, rounds) if is_wanted else None
        for value, like, is_wanted in zip(values, likes, wanted, strict=True)
    )


def rounded_as(value: Tensor | None, like: Tensor | None, rounds: bool) -> Tensor | None:
    """In the shape of `like` and, if it `rounds`, in its dtype."""
    if value is None or like is None:
        return None
    if rounds and value.dtype != like.dtype:
        value = value.to(like.dtype)
    return value if value.shape == like.shape else value.reshape(like.shape)
