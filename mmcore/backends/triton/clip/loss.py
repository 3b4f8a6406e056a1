"""From sums of exponentials to the loss of CLIP, and to the terms of its gradient.

    loss = Σ_i (row_lse_i − s_ii)/(2·N) + Σ_j (col_lse_j − s_jj)/(2·N)
    R_i = 2^(shift − log2(e)·row_lse_i)        C_j = 2^(shift − log2(e)·col_lse_j)
    target_i = (exp(s_ii − row_lse_i) − 1) + (exp(s_ii − col_lse_i) − 1)

With them 2·N times the gradient of the loss by the logits is E_ij·(R_i + C_j), and target_i on the
diagonal, where near convergence both parts are small differences.

Never stored: anything larger than O(N).
Loop order: programs of the rows, then those of the columns, as in
softmax_similarity/log_sum_exps.py. The last program adds the loss up (last_block.py).
Precision: float64. Terms are stored in float32, lse in two parts.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton import kept_size
from mmcore.backends.triton.arguments import BothSides, Ids, SideBiases, Size, Strides
from mmcore.backends.triton.constants import Constant
from mmcore.backends.triton.last_block import is_last, store_total, sum_in_order
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.norms_and_targets import MOST_PARTS
from mmcore.backends.triton.softmax_similarity.log_sum_exps import (
    Matrix,
    SideSums,
    Targets,
    block_statistics,
)
from mmcore.backends.triton.softmax_similarity.norms import Norms
from mmcore.backends.triton.softmax_similarity.shared_shift import numbers_of, store_numbers
from mmcore.backends.triton.softmax_similarity.terms_memory import (
    factor_and_trust,
    store_common,
    terms_in,
)

NUMBERS = Constant(kept_size.NUMBERS)


@triton.jit
def matrix_of(row_sums, col_sums, row_parts, col_parts, logit, scale, size, strides):
    """What blocks of statistics are computed from; `scale` stands for what CLIP does not have."""
    nothing = SideBiases(scale, scale, scale, scale)
    return Matrix(
        SideSums(row_sums, row_sums, row_parts), SideSums(col_sums, col_sums, col_parts), nothing,
        nothing, scale, BothSides(scale, scale), Ids(scale, scale, scale, scale, scale),
        Targets(scale, logit), size, strides,
    )  # fmt: skip


@triton.jit
def part_of(block, size, numbers, side, out, flags, target, HAS_TERMS: tl.constexpr):
    """A block's part of 2·N times the loss; stores the terms of its rows, or columns."""
    own, lse, logit = block
    if HAS_TERMS:
        factor, is_trusted = factor_and_trust(own, lse * 0.0 + 1.0, lse, 0.0, numbers, side, False)
        store_common(own, size, factor, lse, is_trusted, out, flags)
        # Two numbers are added to 0, in whatever order: the bits are the same.
        share = (tl.exp(logit - lse) - 1.0).to(tl.float32)
        tl.atomic_add(target + own, share, mask=own < size)
    return tl.sum(tl.where(own < size, lse - logit, 0.0), 0)


@planned
@triton.jit
def clip_loss_kernel(
    x, y, row_sums, col_sums, scratch, scale, stored, loss, row_parts, col_parts, norm_parts, rows,
    x_stride, y_stride, PAIRS: tl.constexpr, BIASES: tl.constexpr, COUNT: tl.constexpr,
    HAS_TERMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """The scratch: the largest norms, the logits of targets, the counter, parts of the loss.

    HAS_TERMS: whether there will be a backward.
    """
    size, program, row_blocks = Size(rows, rows), tl.program_id(0), tl.cdiv(rows, TILE.BM)
    logit = scratch + 2 * MOST_PARTS
    counter = logit + rows
    matrix = matrix_of(
        row_sums, col_sums, row_parts, col_parts, logit, scale, size,
        Strides(x_stride, y_stride, 0, 0),
    )  # fmt: skip
    numbers = numbers_of(Norms(scratch, norm_parts), scale)
    terms = terms_in(stored + NUMBERS, size, COUNT, False)
    if HAS_TERMS:
        if program == 0:
            store_numbers(stored, numbers)
            tl.store(terms.counter, 0.0)
    if program < row_blocks:
        of_rows = block_statistics(
            program, x, y, matrix, numbers, False, PAIRS, BIASES, False, TILE
        )
        part = part_of(
            of_rows,
            rows,
            numbers,
            matrix.row_side,
            terms.row,
            terms.row_flags,
            terms.target,
            HAS_TERMS,
        )
    else:
        column = program - row_blocks
        of_columns = block_statistics(
            column, x, y, matrix, numbers, True, PAIRS, BIASES, False, TILE
        )
        part = part_of(
            of_columns,
            rows,
            numbers,
            matrix.col_side,
            terms.col,
            terms.col_flags,
            terms.target,
            HAS_TERMS,
        )
    tl.store(counter + 1 + program, part)
    if is_last(counter):
        total = sum_in_order(counter + 1, tl.num_programs(0))
        store_total(loss, total / (2.0 * tl.cast(rows, tl.float64)))
