"""Sums for sigmoid objectives, and their gradients in the same pass: the launches."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import as_inputs
from mmcore.backends.triton import hopper
from mmcore.backends.triton.inputs import Matrix
from mmcore.backends.triton.launch import (
    chunk_of_gradient,
    chunk_rows,
    row_tile,
    within_memory,
)
from mmcore.backends.triton.norms_and_targets import NORMS, tally_kernel
from mmcore.backends.triton.products import add_product, product, scale_rows
from mmcore.backends.triton.sigmoid_similarity.cached_gradients import NUM_WARPS, from_kept_kernel
from mmcore.backends.triton.sigmoid_similarity.terms import (
    BLOCK,
    NUMBERS,
    WEIGHTS,
    WIDE_NUMBERS,
    sigmoid_terms_kernel,
    sigmoid_totals_kernel,
)
from mmcore.backends.triton.sigmoid_similarity.tile import sigmoid_tile_kernel
from mmcore.backends.triton.softmax_similarity.shared_shift import norms_and_logits

# Each leaves four sums: 16 MiB of them.
MOST_PROGRAMS = 2**19


class Outputs(NamedTuple):
    """Where products with G go."""

    of_x: Tensor  # G·y; where y is x (G + Gᵀ)·x
    of_y: Tensor | None  # Gᵀ·x, float32; where y is x none


class Totals(NamedTuple):
    """What one pass over the matrix adds up to, float64."""

    total: Tensor  # 0-D
    positive: Tensor  # 0-D
    sums: Tensor  # (2,): Σ G·⟨x, y⟩ and Σ G


class Terms(NamedTuple):
    """terms.py's results, all on the device."""

    numbers: Tensor
    wide: Tensor
    at_target: Tensor
    parts: Tensor  # (2, programs) float64: softplus and logit of targets

    @staticmethod
    def of(matrix: Matrix, upstream: tuple[Tensor, Tensor] | None) -> Terms:
        """With upstream gradients: for the backward. Without: for gradients kept by the forward."""
        x, rows, has_target = matrix.x, matrix.shape[0], matrix.target is not None
        logits = x
        if has_target:
            _, logits = norms_and_logits(matrix, needs_norms=False, tallies=False)
        programs = triton.cdiv(rows, BLOCK) if has_target else 1
        terms = Terms(
            x.new_empty(NUMBERS, dtype=torch.float32),
            x.new_empty(WIDE_NUMBERS, dtype=torch.float64),
            x.new_empty(rows if has_target else 0, dtype=torch.float32),
            x.new_empty((2, programs), dtype=torch.float64),
        )
        sigmoid_terms_kernel[(programs,)](
            logits, matrix.ids()[0], matrix.scale, matrix.biases()[0], *(upstream or (x, x)),
            *terms, rows, HAS_TARGET=has_target, HAS_BIAS=matrix.bias is not None,
            HAS_UPSTREAM=upstream is not None,
            IS_FLOAT16=matrix.product_dtype == torch.float16, BLOCK=BLOCK,
        )  # fmt: skip
        return terms


def sigmoid_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, keeps_gradients = arguments
    matrix = _matrix(*described)
    kept = matrix.x.new_empty(0, dtype=torch.float32)
    outputs = None
    if keeps_gradients:
        size = matrix.x.numel() + (0 if matrix.y is None else matrix.y.numel())
        kept = kept.new_empty(size)
        outputs = _sides(kept, matrix)
    found = _run(matrix, Terms.of(matrix, None), outputs)
    sums = found.sums if keeps_gradients else found.sums.new_empty(0)
    return found.total, found.positive, kept, sums


def sigmoid_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept, kept_sums, grad_total, grad_positive, wanted = arguments
    matrix = _matrix(*described)
    if kept.numel() > 0 and matrix.target is not None:
        gradients = _from_kept(matrix, kept, kept_sums, grad_total, grad_positive)
        return as_inputs(gradients, described[:4], wanted)
    of_y = None if matrix.y is None else torch.empty_like(matrix.y, dtype=torch.float32)
    outputs = Outputs(
        torch.empty(matrix.x.shape, dtype=matrix.x.dtype, device=matrix.x.device), of_y
    )
    terms = Terms.of(matrix, (grad_total, grad_positive))
    found = _run(matrix, terms, outputs)
    return as_inputs((*outputs, *found.sums), described[:4], wanted)


def _matrix(x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *rest: Any) -> Matrix:
    *pairs, multiplies_bfloat16 = rest
    return Matrix.of(x, y, scale, bias, None, None, *pairs, "all", True, multiplies_bfloat16)


def _sides(kept: Tensor, matrix: Matrix) -> Outputs:
    """Views of what is kept, in the shapes of x and y."""
    of_x = kept[: matrix.x.numel()].view(matrix.x.shape)
    of_y = None if matrix.y is None else kept[matrix.x.numel() :].view(matrix.y.shape)
    return Outputs(of_x, of_y)


def _from_kept(
    matrix: Matrix, kept: Tensor, kept_sums: Tensor, of_total: Tensor, of_positive: Tensor
) -> tuple[Tensor | None, ...]:
    """From the gradients at a = 1, c = −1: cached_gradients.py."""
    x, y, (rows, columns) = matrix.x, matrix.keys, matrix.shape
    target, kept_x, kept_y = matrix.ids()[0], *_sides(kept, matrix)
    has_y, tile = matrix.y is not None, row_tile(x.shape[1])
    tally = x.new_zeros(NORMS + columns, dtype=torch.int64)
    tally_kernel[(triton.cdiv(rows, BLOCK),)](target, tally, rows, columns, ROWS=BLOCK)
    grad_x = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    grad_y = torch.empty(y.shape, dtype=y.dtype, device=x.device) if has_y else None
    programs = triton.cdiv(max(rows, columns), tile.ROWS)
    parts = x.new_empty((2, programs), dtype=torch.float64)
    from_kept_kernel[(programs,)](
        x, y, target, tally, kept_x, kept_x if kept_y is None else kept_y, kept_sums, of_total,
        of_positive, matrix.scale, grad_x, grad_x if grad_y is None else grad_y, parts, rows,
        columns, x.shape[1], x.stride(0), y.stride(0), HAS_Y=has_y, **tile._asdict(),
        num_warps=NUM_WARPS,
    )  # fmt: skip
    of_scale, of_bias = parts.sum(1)
    return grad_x, grad_y, of_scale, of_bias


def _run(matrix: Matrix, terms: Terms, outputs: Outputs | None) -> Totals:
    """One pass; fills outputs. Without them G is not formed, and chunks are large."""
    matrix = matrix.rounded()
    (rows, columns), tile = matrix.shape, matrix.tile("sigmoid")
    block = tile.BM
    size = min(rows, block * max(1, MOST_PROGRAMS // triton.cdiv(columns, tile.BN)))
    if outputs is not None:
        held = chunk_rows(matrix.x, columns, matrix.product_dtype.itemsize, block)
        size = min(triton.cdiv(size, block) * block, held)
    return within_memory(partial(_pass_by_chunks, matrix, terms, outputs), size, block)


def _pass_by_chunks(matrix: Matrix, terms: Terms, outputs: Outputs | None, size: int) -> Totals:
    (rows, columns), x, dtype = matrix.shape, matrix.x, matrix.product_dtype
    right, factor = matrix.keys, terms.wide[1]
    chunk = None if outputs is None else chunk_of_gradient(x, size, columns, dtype)
    sums = []
    for first in range(0, rows, size):
        count = min(size, rows - first)
        g = None if chunk is None else chunk[:count]
        sums.append(_run_chunk(matrix, terms, first, count, g))
        if outputs is not None and g is not None:
            scale_rows(product(g, right), factor, outputs.of_x[first : first + count])
            if outputs.of_y is not None:
                add_product(outputs.of_y, g.T, x[first : first + count], begins=first == 0)
    if outputs is not None and outputs.of_y is not None:
        scale_rows(outputs.of_y, factor, outputs.of_y)
    of_chunks = torch.stack(sums)
    found = Totals(*(x.new_empty(shape, dtype=torch.float64) for shape in ((), (), (2,))))
    sigmoid_totals_kernel[(1,)](
        of_chunks, terms.parts, terms.wide, *found, len(of_chunks), terms.parts.shape[1],
        HAS_TARGET=matrix.target is not None, BLOCK=BLOCK,
    )  # fmt: skip
    return found


def _run_chunk(matrix: Matrix, terms: Terms, first: int, count: int, g: Tensor | None) -> Tensor:
    """The four sums of `count` rows from `first` on; fills g, if there is one."""
    if hopper.serves(matrix):
        weights = terms.numbers[WEIGHTS:]
        return hopper.sigmoid_sums(
            matrix, terms.numbers, weights, terms.at_target, first, count, g
        ).sum(1)
    tile, x, columns, ids = matrix.tile("sigmoid"), matrix.x, matrix.shape[1], matrix.ids()
    programs = triton.cdiv(count, tile.BM) * triton.cdiv(columns, tile.BN)
    parts = torch.zeros((4, programs), dtype=torch.float64, device=x.device)
    out = x if g is None else g
    sigmoid_tile_kernel[(programs,)](
        *matrix.features(tile), terms.numbers, terms.numbers[WEIGHTS:], ids[0], terms.at_target,
        *ids[1:], out, *parts, first, count, columns, x.stride(0), matrix.keys.stride(0),
        out.stride(0), HAS_GRADIENTS=g is not None, IS_SYMMETRIC=matrix.y is None,
        **matrix.settings(tile),
    )  # fmt: skip
    return parts.sum(1)
