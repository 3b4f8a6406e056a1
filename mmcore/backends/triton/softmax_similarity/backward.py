"""The backward of softmax_similarity: its launches.

Log-sum-exps of positives take a second pass, which counts positives alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.triton import hopper, kept_size
from mmcore.backends.triton.arguments import BothSides
from mmcore.backends.triton.inputs import finished
from mmcore.backends.triton.launch import by_pointers, whole
from mmcore.backends.triton.softmax_similarity.chunks import gradients
from mmcore.backends.triton.softmax_similarity.gain import Given
from mmcore.backends.triton.softmax_similarity.gradient_terms import (
    BLOCK,
    LARGEST_BLOCK,
    LARGEST_PROGRAMS,
    MOST_WITHOUT_A_LAUNCH,
    Upstream,
    gradient_terms_kernel,
    largest_gradients_kernel,
)
from mmcore.backends.triton.softmax_similarity.gradient_totals import Gradient, Needs
from mmcore.backends.triton.softmax_similarity.kept_exponentials import rows_and_numbers
from mmcore.backends.triton.softmax_similarity.matrix import SimilarityMatrix, matrix_of
from mmcore.backends.triton.softmax_similarity.norms import Norms, norms_and_targets
from mmcore.backends.triton.softmax_similarity.terms_memory import TERMS


class Pass(NamedTuple):
    """One pass over the matrix; it takes the statistics and upstream gradients of log-sum-exps."""

    inputs: SimilarityInputs
    lse: BothSides
    logits: Tensor  # of targets, float64
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
        only = Pass(inputs, lse, statistics.row_pos, kept, kept.nbytes, Upstream(*upstream))
        return _gradients(only, wanted, rounds)
    # Both passes take the same rounded E, so that its rounding cancels where the positives are
    # nearly everything. Where the first does not count positives, what it kept is 0 for them.
    kept_for_second = kept[:0] if inputs.denominator == "negatives" else kept
    zeros = [torch.zeros_like(part) for part in upstream[:2]]
    first = Pass(
        inputs, lse, statistics.row_pos, kept, kept.nbytes, Upstream(*upstream[:2], *zeros)
    )
    second = Pass(
        inputs.among_positives(), BothSides(statistics.row_pos, statistics.col_pos),
        statistics.row_pos, kept_for_second, kept.nbytes, Upstream(*upstream[2:], *zeros),
    )  # fmt: skip
    found = zip(*(_gradients(each, wanted, rounds) for each in (first, second)), strict=True)
    return tuple(None if one is None or other is None else one.add_(other) for one, other in found)


def _gradients(one: Pass, wanted: SoftmaxWanted, rounds: bool) -> Gradients:
    """Those of one pass, in which statistics of positives are sums."""
    given, matrix = one.inputs, matrix_of(one.inputs)
    is_half, is_own_transpose = matrix.recipe.sides.IS_SYMMETRIC, given.y is None
    needs = Needs(
        wanted.x, (wanted.y or (is_own_transpose and wanted.x)) and not is_half, wanted.scale,
        wanted.row_bias or wanted.col_bias, rounds,
    )  # fmt: skip
    rows_of_e, numbers = rows_and_numbers(one.kept, matrix.size.columns)
    # Sums for the biases are those of whole tiles, which exact ones beside kept ones are not.
    kept = rows_of_e[:0] if needs.sums else rows_of_e
    terms, wide = _terms(matrix, one, numbers)
    is_hopper = matrix.recipe.is_hopper and not needs.sums
    gradient = Gradient(
        matrix, (given.x.dtype, given.x.dtype), numbers, terms, TERMS,
        Given(wide, given.scale, wide), kept, False, is_hopper,
        hopper.EXACT_TILE if is_hopper else matrix.tile("gradient"),
        by_pointers(matrix.tile("kept")),
    )  # fmt: skip
    found = gradients(gradient, needs, one.kept_bytes, given.scale)
    likes = (given.x, given.y, given.scale, given.row_bias, given.col_bias)
    return finished(found, likes, wanted, rounds)


def _terms(matrix: SimilarityMatrix, one: Pass, numbers: Tensor) -> tuple[Tensor, Tensor]:
    """Terms of G, and the unit and its product with the scale."""
    inputs, recipe, (rows, columns) = matrix.inputs, matrix.recipe, matrix.size
    x, has_numbers = inputs.x, one.kept.numel() > 0
    norms = Norms(x, 0)  # which the kernel does not read
    if not has_numbers:
        norms = norms_and_targets(matrix, tallies=False).norms
    upstream_strides = Upstream(*(it.stride(0) if it.numel() else 0 for it in one.upstream))
    has_largest, programs = max(rows, columns) > MOST_WITHOUT_A_LAUNCH, 0
    wide = x.new_empty(2 + LARGEST_PROGRAMS.value, dtype=torch.float64)
    if has_largest:
        programs = min(LARGEST_PROGRAMS.value, whole(max(rows, columns), LARGEST_BLOCK.value))
        largest_gradients_kernel[(programs,)](
            one.upstream, upstream_strides, wide, matrix.size, HAS_COLUMNS=inputs.has_columns
        )
    memory = x.new_empty(kept_size.terms_size(rows, columns, TERMS), dtype=torch.float32)
    gradient_terms_kernel[(whole(max(rows, columns), BLOCK.value),)](
        norms, numbers, one.lse, one.upstream, upstream_strides, matrix.ids.target, one.logits,
        inputs.scale, matrix.bias, matrix.row_side, matrix.col_side, memory, wide, programs,
        matrix.size, PAIRS=recipe.pairs, BIASES=recipe.which_biases, SIDES=recipe.sides,
        COUNT=TERMS, HAS_NUMBERS=has_numbers, HAS_LARGEST=has_largest,
        IS_FLOAT16=recipe.dtype == torch.float16,
    )  # fmt: skip
    return memory, wide
