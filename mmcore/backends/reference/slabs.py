"""The similarity matrix by slabs of rows: N×M is never stored, whatever the dtype."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends import workspace
from mmcore.backends.inputs import SimilarityInputs, arithmetic_dtype
from mmcore.backends.reference.pairs import Masks, check_target, masks

# Of a slab a backward holds the products, the logits, G, masks, and float64 copies of some.
BYTES_OF_AN_ENTRY = 64
LEAST_ROWS = 32


class Slab(NamedTuple):
    """Some rows of the matrix."""

    rows: slice
    products: Tensor
    logits: Tensor
    masks: Masks


def slabs(rows: int, columns: int, device: torch.device) -> Iterator[slice]:
    """Ranges of rows whose entries fit into the workspace, of LEAST_ROWS at least."""
    fitting = workspace.current(device.type) // (BYTES_OF_AN_ENTRY * columns)
    size = max(LEAST_ROWS, fitting)
    return (slice(first, min(first + size, rows)) for first in range(0, rows, size))


def widened(inputs: SimilarityInputs) -> SimilarityInputs:
    """In the dtype of the arithmetic, spelled out where y is x, and checked."""
    check_target(inputs)
    dtype = arithmetic_dtype(inputs.x.dtype)

    def wide(tensor: Tensor | None) -> Tensor | None:
        return None if tensor is None else tensor.to(dtype)

    inputs = inputs.spelled_out()
    return inputs._replace(
        x=inputs.x.to(dtype), y=wide(inputs.y), scale=inputs.scale.to(dtype),
        bias=wide(inputs.bias), row_bias=wide(inputs.row_bias), col_bias=wide(inputs.col_bias),
    )  # fmt: skip


def matrix_by_slabs(inputs: SimilarityInputs) -> Iterator[Slab]:
    """All rows of a widened matrix."""
    x, y = inputs.x, inputs.keys
    for rows in slabs(x.shape[0], y.shape[0], x.device):
        products = x[rows] @ y.T
        logits = inputs.scale * products
        logits = logits if inputs.bias is None else logits + inputs.bias
        logits = logits if inputs.row_bias is None else logits + inputs.row_bias[rows, None]
        logits = logits if inputs.col_bias is None else logits + inputs.col_bias
        yield Slab(rows, products, logits, masks(inputs, rows))
