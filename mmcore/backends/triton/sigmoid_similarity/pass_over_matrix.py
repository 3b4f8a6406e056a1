"""One pass of sigmoid_similarity over the matrix: its launches, chunk by chunk of rows.

A pass finds the sums and, where products with G have a place to go, forms G for them.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import SigmoidUpstream, SimilarityInputs
from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import Chunk
from mmcore.backends.triton.inputs import (
    ids,
    operands,
    pointer,
    product_dtype,
    rounded,
    settings,
    shape,
    strides,
    tile_for,
)
from mmcore.backends.triton.launch import chunk_of_gradient, chunk_rows, within_memory
from mmcore.backends.triton.products import add_product, product, scale_rows
from mmcore.backends.triton.sigmoid_similarity.terms import (
    BLOCK,
    NUMBERS,
    WEIGHTS,
    WIDE_NUMBERS,
    Terms,
    Totals,
    sigmoid_terms_kernel,
    sigmoid_totals_kernel,
)
from mmcore.backends.triton.sigmoid_similarity.tile import TileSums, sigmoid_tile_kernel
from mmcore.backends.triton.softmax_similarity.matrix import matrix_of
from mmcore.backends.triton.softmax_similarity.norms import norms_and_targets

# Each leaves four sums: 16 MiB of them.
MOST_PROGRAMS = 2**19


class ProductGradients(NamedTuple):
    """Products with G: the gradients of x and y."""

    x: Tensor  # G·y; where y is x (G + Gᵀ)·x
    y: Tensor | None  # Gᵀ·x, float32; None where y is x


def new_terms(inputs: SimilarityInputs, upstream: SigmoidUpstream | None) -> Terms:
    """Those of the upstream gradients; without, of the gradients that the forward caches."""
    x, rows, has_target = inputs.x, inputs.x.shape[0], inputs.target is not None
    logits = x
    if has_target:
        logits = norms_and_targets(matrix_of(inputs), tallies=False).logits
    programs = triton.cdiv(rows, BLOCK.value) if has_target else 1
    terms = Terms(
        x.new_empty(NUMBERS, dtype=torch.float32),
        x.new_empty(WIDE_NUMBERS, dtype=torch.float64),
        x.new_empty(rows if has_target else 0, dtype=torch.float32),
        x.new_empty((2, programs), dtype=torch.float64),
    )
    sigmoid_terms_kernel[(programs,)](
        logits, ids(inputs).target, inputs.scale, pointer(inputs.bias, x),
        upstream or SigmoidUpstream(x, x), terms, rows, HAS_TARGET=has_target,
        HAS_BIAS=inputs.bias is not None, HAS_UPSTREAM=upstream is not None,
        IS_FLOAT16=product_dtype(inputs) == torch.float16,
    )  # fmt: skip
    return terms


def run(inputs: SimilarityInputs, terms: Terms, gradients: ProductGradients | None) -> Totals:
    """One pass; fills the gradients. Without them G is not formed, and chunks are large."""
    inputs = rounded(inputs)
    (rows, columns), tile = shape(inputs), tile_for(inputs, "sigmoid")
    block = tile.BM
    size = min(rows, block * max(1, MOST_PROGRAMS // triton.cdiv(columns, tile.BN)))
    if gradients is not None:
        held = chunk_rows(inputs.x, columns, product_dtype(inputs).itemsize, block)
        size = min(triton.cdiv(size, block) * block, held)
    return within_memory(partial(_pass_by_chunks, inputs, terms, gradients), size, block)


def _pass_by_chunks(
    inputs: SimilarityInputs, terms: Terms, gradients: ProductGradients | None, size: int
) -> Totals:
    (rows, columns), x, dtype = shape(inputs), inputs.x, product_dtype(inputs)
    factor = terms.wide[1]
    memory = None if gradients is None else chunk_of_gradient(x, size, columns, dtype)
    sums = []
    for first in range(0, rows, size):
        count = min(size, rows - first)
        g = None if memory is None else memory[:count]
        sums.append(_run_chunk(inputs, terms, first, count, g))
        if gradients is not None and g is not None:
            chunk = slice(first, first + count)
            scale_rows(product(g, inputs.keys), factor, gradients.x[chunk])
            if gradients.y is not None:
                add_product(gradients.y, g.T, x[chunk], begins=first == 0)
    if gradients is not None and gradients.y is not None:
        scale_rows(gradients.y, factor, gradients.y)
    chunk_sums = torch.stack(sums)
    found = Totals(*(x.new_empty(shape, dtype=torch.float64) for shape in ((), (), (2,))))
    sigmoid_totals_kernel[(1,)](
        chunk_sums, terms.parts, terms.wide, found, len(chunk_sums), terms.parts.shape[1],
        HAS_TARGET=inputs.target is not None,
    )  # fmt: skip
    return found


def _run_chunk(
    inputs: SimilarityInputs, terms: Terms, first: int, count: int, g: Tensor | None
) -> Tensor:
    """The four sums of `count` rows from `first` on; fills g, if there is one."""
    if hopper.serves(inputs):
        return hopper.launches().sigmoid_sums(inputs, terms, first, count, g).sum(1)
    tile, x, columns = tile_for(inputs, "sigmoid"), inputs.x, shape(inputs)[1]
    programs = triton.cdiv(count, tile.BM) * triton.cdiv(columns, tile.BN)
    parts = torch.zeros((4, programs), dtype=torch.float64, device=x.device)
    out = x if g is None else g
    sigmoid_tile_kernel[(programs,)](
        *operands(inputs, tile), terms.numbers, terms.numbers[WEIGHTS:], ids(inputs),
        terms.at_target, out, TileSums(*parts), Chunk(first, count), columns,
        strides(inputs)._replace(out=out.stride(0)), HAS_GRADIENTS=g is not None,
        IS_SYMMETRIC=inputs.y is None, **settings(inputs, tile),
    )  # fmt: skip
    return parts.sum(1)
