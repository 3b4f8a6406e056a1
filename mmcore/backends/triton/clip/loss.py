"""From sums of exponentials to the loss of CLIP, and to the terms of its gradient.

    loss = Σ_i (row_lse_i − s_ii)/(2·N) + Σ_j (col_lse_j − s_jj)/(2·N)
    R_i = 2^(shift − log2(e)·row_lse_i)        r_i = exp(s_ii − row_lse_i) − 1
    C_j = 2^(shift − log2(e)·col_lse_j)        c_j = exp(s_jj − col_lse_j) − 1

With them 2·N times the gradient of the loss by the logits is E_ij·(R_i + C_j), and r_i + c_i on the
diagonal: near convergence both are small differences.

Never stored: anything larger than O(N).
Loop order: programs of the rows, then those of the columns, as in
softmax_similarity/log_sum_exps.py. The last program adds the loss up (last_block.py).
Precision: float64. Terms are stored in float32, lse in two parts.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.last_block import is_last, store_total, sum_in_order
from mmcore.backends.triton.softmax_similarity.log_sum_exps import block_statistics
from mmcore.backends.triton.softmax_similarity.shared_shift import numbers_of, store_numbers
from mmcore.backends.triton.softmax_similarity.terms_memory import (
    factor_and_trust,
    store_common,
    terms_in,
)


class LossParts(NamedTuple):
    """Where the loss goes, and what its programs leave for the last one."""

    loss: Any  # 0-D
    part: Any  # float64, one for each program
    counter: Any  # float32, 0


@triton.jit
def part_of(block, size, numbers, side, out, flags, HAS_TERMS: tl.constexpr):
    """A block's part of 2·N times the loss; stores the terms of its rows, or columns."""
    own, lse, logit = block
    if HAS_TERMS:
        factor, is_trusted = factor_and_trust(lse * 0.0 + 1.0, lse, 0.0, numbers, side, False)
        at_target = tl.exp(logit - lse) - 1.0
        store_common(own, size, factor, lse, is_trusted, at_target, out, flags)
    return tl.sum(tl.where(own < size, lse - logit, 0.0), 0)


@triton.jit
def clip_loss_kernel(
    x, y, matrix, norms, scale, stored, memory, out, PAIRS: tl.constexpr, BIASES: tl.constexpr,
    COUNT: tl.constexpr, HAS_TERMS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """HAS_TERMS: whether there will be a backward."""
    program, size, row_blocks = tl.program_id(0), matrix.size, tl.cdiv(matrix.size.rows, TILE.BM)
    numbers = numbers_of(norms, scale)
    terms = terms_in(memory, size, COUNT, False)
    if HAS_TERMS:
        if program == 0:
            store_numbers(stored, numbers)
            tl.store(terms.counter, 0.0)
    if program < row_blocks:
        of_rows = block_statistics(
            program, x, y, matrix, numbers, False, PAIRS, BIASES, False, TILE
        )
        part = part_of(
            of_rows, size.rows, numbers, matrix.row_side, terms.row, terms.row_flags, HAS_TERMS
        )
    else:
        column = program - row_blocks
        of_columns = block_statistics(
            column, x, y, matrix, numbers, True, PAIRS, BIASES, False, TILE
        )
        part = part_of(
            of_columns,
            size.columns,
            numbers,
            matrix.col_side,
            terms.col,
            terms.col_flags,
            HAS_TERMS,
        )
    tl.store(out.part + program, part)
    if is_last(out.counter):
        total = sum_in_order(out.part, tl.num_programs(0))
        store_total(out.loss, total / (2.0 * tl.cast(size.rows, tl.float64)))
