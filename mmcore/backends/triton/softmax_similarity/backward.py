"""The backward of softmax_similarity: its launches, chunk by chunk of G.

Log-sum-exps of positives take a second pass, which counts positives alone.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import BothSides, Chunk, Size
from mmcore.backends.triton.inputs import (
    finished,
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
from mmcore.backends.triton.launch import chunk_of_gradient, chunk_rows, within_memory
from mmcore.backends.triton.softmax_similarity.gradient import (
    Form,
    GradientSums,
    store_gradient_kernel,
)
from mmcore.backends.triton.softmax_similarity.gradient_terms import (
    BLOCK,
    LARGEST_BLOCK,
    LARGEST_PROGRAMS,
    TERMS,
    GradientTerms,
    Upstream,
    gradient_terms_kernel,
    largest_gradients_kernel,
)
from mmcore.backends.triton.softmax_similarity.gradient_totals import (
    Gradient,
    GradientTotals,
    Needs,
)
from mmcore.backends.triton.softmax_similarity.kept_exponentials import as_operand, as_rows
from mmcore.backends.triton.softmax_similarity.shared_shift import SharedShift, shared_shift

# Grid size of the exact launch, for tiles that the shared shift cannot serve: there seldom are any.
EXACT_PROGRAMS = 1024


class Pass(NamedTuple):
    """One pass over the matrix; it takes the statistics and upstream gradients of log-sum-exps."""

    inputs: SimilarityInputs
    lse: BothSides
    kept: Tensor
    kept_bytes: int  # of the workspace that are taken, even if this pass does not use them
    upstream: Upstream


def backward(
    inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream,
    wanted: SoftmaxWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x, y, scale, row_bias and col_bias; rounded to the dtypes of these, or sums."""
    lse, kept = BothSides(statistics.row_lse, statistics.col_lse), statistics.kept
    if inputs.positives == "sum":
        only = Pass(inputs, lse, kept, kept.nbytes, Upstream(*upstream))
        return _gradients(only, wanted, rounds)
    # Both passes take the same rounded E, so that its rounding cancels where the positives are
    # nearly everything. Where the first does not count positives, what it kept is 0 for them.
    kept_for_second = kept[:0] if inputs.denominator == "negatives" else kept
    zeros = [torch.zeros_like(part) for part in upstream[:2]]
    first = Pass(inputs, lse, kept, kept.nbytes, Upstream(*upstream[:2], *zeros))
    second = Pass(
        inputs.among_positives(), BothSides(statistics.row_pos, statistics.col_pos),
        kept_for_second, kept.nbytes, Upstream(*upstream[2:], *zeros),
    )  # fmt: skip
    found = zip(*(_gradients(each, wanted, rounds) for each in (first, second)), strict=True)
    return tuple(None if one is None or other is None else one.add_(other) for one, other in found)


def _gradients(one: Pass, wanted: SoftmaxWanted, rounds: bool) -> Gradients:
    """Those of one pass, in which statistics of positives are sums."""
    inputs = prepared(one.inputs)
    is_half, is_own_transpose = inputs.is_half_enough, inputs.y is None
    needs = Needs(
        wanted.x, (wanted.y or (is_own_transpose and wanted.x)) and not is_half, wanted.scale,
        wanted.row_bias or wanted.col_bias, rounds,
    )  # fmt: skip
    gradient = _gradient(inputs, one, needs.sums)
    columns, block = shape(inputs)[1], max(gradient.tile.BM, gradient.kept_tile.BM)
    itemsize = product_dtype(inputs).itemsize
    found = within_memory(
        partial(_products_with, gradient, needs),
        chunk_rows(inputs.x, columns, itemsize, block, one.kept_bytes), block,
    )  # fmt: skip
    given = one.inputs
    likes = (given.x, given.y, given.scale, given.row_bias, given.col_bias)
    return finished((*found.products(), *found.sums()), likes, wanted, rounds)


def _gradient(inputs: SimilarityInputs, one: Pass, needs_sums: bool) -> Gradient:
    columns, shift = shape(inputs)[1], shared_shift(inputs)
    terms = _terms(inputs, shift, one)
    dtypes = (inputs.x.dtype, inputs.keys.dtype)
    inputs = rounded(inputs)
    is_hopper = hopper.serves(inputs) and not needs_sums
    tile = hopper.EXACT_TILE if is_hopper else tile_for(inputs, "gradient")
    return Gradient(
        inputs, dtypes, shift.numbers, terms, as_rows(one.kept, columns), is_hopper, tile,
        tile_for(inputs, "kept"),
    )  # fmt: skip


def _terms(inputs: SimilarityInputs, shift: SharedShift, one: Pass) -> GradientTerms:
    (rows, columns), x = shape(inputs), inputs.x
    upstream_strides = Upstream(*(it.stride(0) if it.numel() else 0 for it in one.upstream))
    programs = min(LARGEST_PROGRAMS.value, triton.cdiv(max(rows, columns), LARGEST_BLOCK.value))
    largest = x.new_empty(programs, dtype=torch.float64)
    blocks = triton.cdiv(max(rows, columns), BLOCK.value)
    any_untrusted = x.new_empty((), dtype=torch.int32)
    size = Size(rows, columns)
    largest_gradients_kernel[(programs,)](
        one.upstream, upstream_strides, largest, any_untrusted, size,
        HAS_COLUMNS=inputs.has_columns,
    )  # fmt: skip
    row_terms = col_terms = x.new_empty((TERMS, rows), dtype=torch.float32)
    if not inputs.is_half_enough:
        col_terms = x.new_empty((TERMS, columns), dtype=torch.float32)
    terms = GradientTerms(
        row_terms, col_terms,
        x.new_empty(rows if inputs.target is not None else 0, dtype=torch.float32),
        x.new_empty(2, dtype=torch.float64), any_untrusted.new_empty(2, blocks), any_untrusted,
    )  # fmt: skip
    gradient_terms_kernel[(blocks,)](
        one.lse, one.upstream, upstream_strides, ids(inputs).target, shift.logits, inputs.scale,
        shift.shared, pointer(inputs.bias, x), shift.row_side, shift.col_side, largest, terms,
        programs, size, PAIRS=pairs(inputs), BIASES=which_biases(inputs), SIDES=sides(inputs),
        IS_FLOAT16=product_dtype(inputs) == torch.float16,
    )  # fmt: skip
    return terms


def _products_with(gradient: Gradient, needs: Needs, size: int) -> GradientTotals:
    """Products and sums of G, chunks of at most `size` rows at a time."""
    inputs = gradient.inputs
    (rows, columns), dtype = shape(inputs), product_dtype(inputs)
    totals = GradientTotals(gradient, needs)
    memory = chunk_of_gradient(inputs.x, size, columns, dtype)
    kept_rows = min(rows, len(gradient.kept))
    for start, stop, is_kept in ((0, kept_rows, True), (kept_rows, rows, False)):
        for first in range(start, stop, size):
            g = memory[: min(size, stop - first)]
            parts = totals.new_parts(g, is_kept)
            scale_parts = [parts.scale]
            if gradient.is_hopper and not is_kept:
                scale_parts.append(
                    hopper.launches().store_gradient(
                        inputs, gradient.numbers, gradient.terms, first, g
                    )
                )
            else:
                _store_gradient(gradient, g, first, parts, Form(is_kept, False, needs.sums))
            _store_gradient(gradient, g, first, parts, Form(is_kept, True, needs.sums))
            totals.add(first, g, parts, scale_parts, is_kept)
    return totals


def _store_gradient(
    gradient: Gradient, g: Tensor, first: int, parts: GradientSums, form: Form
) -> None:
    """G of the rows from `first` on, and its partial sums."""
    inputs, tile = gradient.inputs, gradient.tile_of(form.HAS_KEPT)
    rows, columns = shape(inputs)
    kept = gradient.kept if form.HAS_KEPT else gradient.kept[:0]
    tiles = triton.cdiv(len(g), tile.BM) * triton.cdiv(columns, tile.BN)
    programs = min(EXACT_PROGRAMS, tiles) if form.IS_EXACT else tiles
    store_gradient_kernel[(programs,)](
        *operands(inputs, tile), gradient.numbers, gradient.terms, ids(inputs),
        as_operand(kept, tile), g, parts, Chunk(first, len(g)), Size(rows, columns),
        strides(inputs)._replace(out=g.stride(0), kept=gradient.kept.shape[1]),
        SIDES=sides(inputs), FORM=form, **settings(inputs, tile),
    )  # fmt: skip
