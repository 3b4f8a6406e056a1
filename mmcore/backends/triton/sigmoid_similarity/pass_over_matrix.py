"""One pass of sigmoid_similarity over the matrix: its launches, chunk by chunk of rows.

A pass finds the sums and, where products with G have a place to go, forms G for them. In one chunk
these are three launches and two products.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import SigmoidUpstream, SimilarityInputs
from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import Chunk
from mmcore.backends.triton.inputs import (
    ids,
    operands,
    pairs,
    rounded,
    settings,
    shape,
    strides,
    tile_for,
)
from mmcore.backends.triton.launch import chunk_of_gradient, chunk_rows, whole, within_memory
from mmcore.backends.triton.products import add_product, product, scale_rows
from mmcore.backends.triton.sigmoid_similarity.prepare import Mode, Terms, mode_of, prepared_terms
from mmcore.backends.triton.sigmoid_similarity.tile import sigmoid_tile_kernel
from mmcore.backends.triton.sigmoid_similarity.totals import Found, Totals, sigmoid_totals_kernel
from mmcore.backends.triton.tuned_tiles import ProductTile

# Each leaves four sums: 16 MiB of them.
MOST_PROGRAMS = 2**19
# Parts that one program adds up in little time: torch adds up more of them.
MOST_PARTS = 2**14
PARTS_AT_ONCE = 1024


class Products(NamedTuple):
    """Products with G, float32."""

    x: Tensor  # G·y; where y is x (G + Gᵀ)·x
    y: Tensor | None  # Gᵀ·x; None where y is x


@dataclass
class ScaledProducts:
    """Products with G times the factor of prepare.py: gradients, in the dtype of `x`."""

    x: Tensor
    y: Tensor | None  # sums in float32, until all rows are there

    @staticmethod
    def like(inputs: SimilarityInputs, rounds: bool) -> ScaledProducts:
        """Empty, in the dtype of the inputs or in float32."""
        x, y = inputs.x, inputs.y
        dtype = x.dtype if rounds else torch.float32
        sums_of_y = None if y is None else y.new_empty(y.shape, dtype=torch.float32)
        return ScaledProducts(x.new_empty(x.shape, dtype=dtype), sums_of_y)

    def scale_sums(self, factor: Tensor) -> None:
        """Makes a gradient of the sums of y."""
        if self.y is not None:
            dtype = self.x.dtype
            out = self.y if dtype == torch.float32 else torch.empty_like(self.y, dtype=dtype)
            self.y = scale_rows(self.y, factor, out)


Destination = Products | ScaledProducts | None


class Pass(NamedTuple):
    """What the launches of one pass have in common."""

    inputs: SimilarityInputs
    mode: Mode
    terms: Terms
    tile: ProductTile
    is_on_hopper: bool  # whether Hopper's own kernel serves, whose tiles have these sides


def run(
    inputs: SimilarityInputs, upstream: SigmoidUpstream | None, into: Destination, *,
    is_loss: bool = False,
) -> Totals:  # fmt: skip
    """One pass; fills the products. Without them G is not formed, and chunks are large.

    Without upstream gradients, G is that of total − positive.
    """
    inputs = rounded(inputs)
    mode = mode_of(inputs, upstream is not None, is_loss)
    terms, programs = prepared_terms(inputs, mode, upstream)
    is_on_hopper = hopper.serves(inputs)
    tile = hopper.EXACT_TILE if is_on_hopper else tile_for(inputs, "sigmoid")
    (rows, columns), block = shape(inputs), tile.BM
    size = min(rows, block * max(1, MOST_PROGRAMS // whole(columns, tile.BN)))
    if into is not None:
        held = chunk_rows(inputs.x, columns, inputs.x.element_size(), block)
        size = min(whole(size, block) * block, held)
    this = Pass(inputs, mode, terms, tile, is_on_hopper)
    parts = within_memory(partial(_parts_by_chunks, this, into), size, block)
    if isinstance(into, ScaledProducts):
        into.scale_sums(terms.wide[1])
    return _totals(this, parts, programs, into is not None)


def _parts_by_chunks(this: Pass, into: Destination, size: int) -> Tensor:
    """Parts of the four sums, (parts, 4): of the tiles, or where these are many, of the chunks."""
    x, (rows, columns) = this.inputs.x, shape(this.inputs)
    count = min(size, rows)
    memory = None if into is None else chunk_of_gradient(x, count, columns, x.dtype)
    chunk_sums: list[Tensor] = []
    for first in range(0, rows, size):
        count = min(size, rows - first)
        g = memory if memory is None or count == len(memory) else memory[:count]
        parts = _run_chunk(this, first, count, g)
        if size < rows or len(parts) > MOST_PARTS:
            chunk_sums.append(parts.sum(0))
        if into is not None and g is not None:
            _multiply(this, g, first, into)
    return torch.stack(chunk_sums) if chunk_sums else parts


def _multiply(this: Pass, g: Tensor, first: int, into: Products | ScaledProducts) -> None:
    """The products with a chunk of G."""
    x, keys = this.inputs.x, this.inputs.keys
    is_whole = len(g) == len(x)
    chunk = slice(first, first + len(g))
    out, features = (into.x, x) if is_whole else (into.x[chunk], x[chunk])
    if isinstance(into, ScaledProducts):
        scale_rows(product(g, keys), this.terms.wide[1], out)
    else:
        add_product(out, g, keys, begins=True)
    if into.y is not None:
        add_product(into.y, g.T, features, begins=first == 0)


def _run_chunk(this: Pass, first: int, count: int, g: Tensor | None) -> Tensor:
    """Parts of the sums of `count` rows from `first` on, (parts, 4); fills g, if there is one."""
    inputs, mode, terms, tile, is_on_hopper = this
    is_diagonal = mode.TARGET == "diagonal"
    if is_on_hopper:
        return hopper.launches().sigmoid_parts(inputs, terms.numbers, first, count, g, is_diagonal)
    x, columns = inputs.x, shape(inputs)[1]
    programs = whole(count, tile.BM) * whole(columns, tile.BN)
    parts = x.new_empty((programs, 4), dtype=torch.float64)
    out, constants = x if g is None else g, settings(inputs, tile)
    if is_diagonal:
        constants["PAIRS"] = pairs(inputs)._replace(HAS_TARGET=True)
    sigmoid_tile_kernel[(programs,)](
        *operands(inputs, tile), terms.numbers, ids(inputs), out, parts, Chunk(first, count),
        columns, strides(inputs)._replace(out=out.stride(0)), HAS_GRADIENTS=g is not None,
        IS_SYMMETRIC=inputs.y is None, IS_DIAGONAL=is_diagonal, **constants,
    )  # fmt: skip
    return parts


def _totals(this: Pass, parts: Tensor, programs: int, has_gradients: bool) -> Totals:
    inputs, mode, terms = this[:3]
    x, total_dtype = inputs.x, torch.float32 if mode.IS_LOSS else torch.float64
    total = x.new_empty((), dtype=total_dtype)
    positive = total if mode.IS_LOSS else x.new_empty((), dtype=torch.float64)
    sums = x.new_empty(2 if has_gradients else 0, dtype=torch.float64)
    found = Totals(total, positive, sums)
    sigmoid_totals_kernel[(1,)](
        parts, terms.wide, found, len(parts), programs, len(x),
        FOUND=Found(
            mode.TARGET != "none", inputs.row_label is not None, has_gradients, mode.IS_LOSS
        ),
        BLOCK=PARTS_AT_ONCE,
    )  # fmt: skip
    return found
