"""Sums of exponentials of the similarity matrix by rows and by columns: the forward's kernels.

    E_ij = 2^(a·⟨x_i, y_j⟩ − shift), a = scale·log2(e)
    row_i = Σ_{j counted} E_ij·2^(col_bias_j)        col_j = Σ_{i counted} E_ij·2^(row_bias_i)

The biases here are those of the call times log2(e), minus the largest of their side. Targets are
left out of the sums: log_sum_exps.py adds them from float64 logits (norms_and_targets.py).

Never stored: the logits. Where KEEPS, E of the first `kept_rows` rows is stored for the backward,
rounded to bfloat16.
Loop order: a launch takes a slab of rows. A program takes BM rows and walks the columns of one
strip; neighbouring programs take neighbouring rows of the same strip, whose y stays in L2. Sums of
rows stay in registers over the strip. Sums of the columns of every tile are stored, (blocks of the
slab, M), and added up by a later kernel in one order, without atomics.
Precision: float32, one exponential for each logit.

IS_SYMMETRIC, where y is x: only pairs with i ≤ j are computed. Entries right of the diagonal are
also summed by columns, where they stand for (j, i). So both orders of a pair have the same rounded
product, in every sum and in the gradient.

Where the shift is too coarse for a row, its sum falls below 2⁻⁸⁶, and the row is computed again
with a running maximum. Only the device knows whether there are such rows. So the second kernel is
always launched, and programs without a flagged row return at once.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.float64 import in_nats, log_add_exp
from mmcore.backends.triton.softmax_similarity.log_sum_exps import own_biases
from mmcore.backends.triton.tiles import (
    LOG2_E,
    counted,
    exponent_below,
    exponential,
    load_ids,
    load_targets,
    positive_and_excluded,
    store_kept,
    tile_products,
)


@triton.jit
def sum_exponentials_kernel(
    x, y, plan, scale, row_factor, col_factor, row_bias, col_bias,
    target, row_label, col_label, row_group, col_group,
    row_sum, col_sum, row_pos, col_pos, kept,
    first_row, slab_rows, rows, columns, x_stride, y_stride, strip_tiles, kept_rows, kept_stride,
    DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr, HAS_LABELS: tl.constexpr,
    HAS_GROUPS: tl.constexpr, HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr,
    HAS_COLUMNS: tl.constexpr, IS_SYMMETRIC: tl.constexpr, KEEPS: tl.constexpr,
    IS_PRECISE: tl.constexpr, DEPTH: tl.constexpr, WIDENS: tl.constexpr,
    PRECISION: tl.constexpr, USES_DESCRIPTORS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    row_blocks = tl.cdiv(slab_rows, BM)
    block, strip = tl.program_id(0) % row_blocks, tl.program_id(0) // row_blocks
    high, low, shift = tl.load(plan), tl.load(plan + 1), tl.load(plan + 2)
    in_slab, first_i = block * BM + tl.arange(0, BM), first_row + block * BM
    i = first_row + in_slab
    in_rows = i < rows
    target_i = load_targets(target, i, rows, columns, HAS_TARGET)
    row_label_i = load_ids(row_label, i, rows, HAS_LABELS)
    row_group_i = load_ids(row_group, i, rows, HAS_GROUPS)
    total, pos_total = tl.zeros([BM], tl.float32), tl.zeros([BM], tl.float32)
    first = strip * strip_tiles
    last = tl.minimum(first + strip_tiles, tl.cdiv(columns, BN))
    if IS_SYMMETRIC:
        first = tl.maximum(first, first_i // BN)
    for tile in range(first, last):
        j = tile * BN + tl.arange(0, BN)
        in_columns = j < columns
        at = block.to(tl.int64) * columns + j
        products = tile_products(
            x, y, first_i, tile * BN, rows, columns, x_stride, y_stride, DEPTH, WIDENS,
            PRECISION, USES_DESCRIPTORS, BM, BN, BK,
        )  # fmt: skip
        inside = in_rows[:, None] & in_columns[None, :]
        by_rows, by_columns = inside, inside
        if IS_SYMMETRIC:
            by_rows = inside & (j[None, :] >= i[:, None])
            by_columns = inside & (j[None, :] > i[:, None])
        positive, excluded = positive_and_excluded(
            target_i, row_label_i, row_group_i, j,
            load_ids(col_label, j, columns, HAS_LABELS),
            load_ids(col_group, j, columns, HAS_GROUPS),
            HAS_TARGET, HAS_LABELS, HAS_GROUPS, BM, BN,
        )  # fmt: skip
        keep = inside & counted(positive, excluded, DENOMINATOR, HAS_TARGET)
        if HAS_TARGET and not IS_SYMMETRIC:
            keep = keep & ~positive
        e = exponential(products, high, low, shift, IS_PRECISE)
        e = tl.where(keep, e, 0.0)
        if KEEPS and first_i < kept_rows:
            store_kept(kept, e, first_i, tile * BN, kept_stride, USES_DESCRIPTORS, BM, BN)
        of_rows, of_columns = e, e
        if IS_SYMMETRIC:
            of_rows, of_columns = tl.where(by_rows, e, 0.0), tl.where(by_columns, e, 0.0)
            if HAS_TARGET:
                target_j = load_targets(target, j, columns, rows, HAS_TARGET)
                of_rows = tl.where(positive, 0.0, of_rows)
                of_columns = tl.where(target_j[None, :] == i[:, None], 0.0, of_columns)
        if HAS_COL_BIAS:
            factor = tl.load(col_factor + j, mask=in_columns, other=0)
            of_rows = of_rows * factor[None, :]
        total += tl.sum(of_rows, 1)
        if HAS_COLUMNS:
            if HAS_ROW_BIAS:
                factor = tl.load(row_factor + i, mask=in_rows, other=0)
                of_columns = of_columns * factor[:, None]
            tl.store(col_sum + at, tl.sum(of_columns, 0), mask=in_columns)
        if HAS_LABELS:
            by_rows, by_columns = positive & by_rows, positive & by_columns
            logit = products * tl.load(scale).to(tl.float32)
            in_row, in_col = logit, logit
            if HAS_COL_BIAS:
                in_row += tl.load(col_bias + j, mask=in_columns, other=0)[None, :]
            if HAS_ROW_BIAS:
                in_col += tl.load(row_bias + i, mask=in_rows, other=0)[:, None]
            pos_total += tl.sum(tl.where(by_rows, in_row, 0.0), 1)
            if HAS_COLUMNS:
                of_tile = tl.sum(tl.where(by_columns, in_col, 0.0), 0)
                tl.store(col_pos + at, of_tile, mask=in_columns)
    at = strip.to(tl.int64) * slab_rows + in_slab
    tl.store(row_sum + at, total, mask=in_rows)
    if HAS_LABELS:
        tl.store(row_pos + at, pos_total, mask=in_rows)


@triton.jit
def running_log_sum_exp_kernel(
    x, y, plan, bias, row_bias, col_bias, flagged, lse,
    target, row_label, col_label, row_group, col_group, rows, columns, x_stride, y_stride,
    BY_COLUMNS: tl.constexpr, DENOMINATOR: tl.constexpr, HAS_TARGET: tl.constexpr,
    HAS_LABELS: tl.constexpr, HAS_GROUPS: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_ROW_BIAS: tl.constexpr, HAS_COL_BIAS: tl.constexpr,
    DEPTH: tl.constexpr, WIDENS: tl.constexpr, PRECISION: tl.constexpr,
    USES_DESCRIPTORS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr,
):  # fmt: skip
    """Adds all but the targets to the log-sum-exps of flagged rows, or of columns.

    Products are those of every other kernel, in orientation too: the backward's have equal bits.
    """
    OWN: tl.constexpr = BN if BY_COLUMNS else BM
    OTHER: tl.constexpr = BM if BY_COLUMNS else BN
    AXIS: tl.constexpr = 0 if BY_COLUMNS else 1
    HAS_OWN_BIAS: tl.constexpr = HAS_COL_BIAS if BY_COLUMNS else HAS_ROW_BIAS
    HAS_OTHER_BIAS: tl.constexpr = HAS_ROW_BIAS if BY_COLUMNS else HAS_COL_BIAS
    of_own, of_other = (col_bias, row_bias) if BY_COLUMNS else (row_bias, col_bias)
    size, other_size = (columns, rows) if BY_COLUMNS else (rows, columns)
    own = tl.program_id(0) * OWN + tl.arange(0, OWN)
    is_flagged = tl.load(flagged + own, mask=own < size, other=0) != 0
    if tl.sum(is_flagged.to(tl.int32)) == 0:
        return
    high, low = tl.load(plan), tl.load(plan + 1)
    maximum = tl.full([OWN], float("-inf"), tl.float32)
    total = tl.zeros([OWN], tl.float32)
    for start in range(0, other_size, OTHER):
        other = start + tl.arange(0, OTHER)
        i, j = (other, own) if BY_COLUMNS else (own, other)
        first_own = tl.program_id(0) * OWN
        first_i, first_j = (start, first_own) if BY_COLUMNS else (first_own, start)
        products = tile_products(
            x, y, first_i, first_j, rows, columns, x_stride, y_stride, DEPTH, WIDENS,
            PRECISION, USES_DESCRIPTORS, BM, BN, BK,
        )  # fmt: skip
        positive, excluded = positive_and_excluded(
            load_targets(target, i, rows, columns, HAS_TARGET),
            load_ids(row_label, i, rows, HAS_LABELS), load_ids(row_group, i, rows, HAS_GROUPS), j,
            load_ids(col_label, j, columns, HAS_LABELS),
            load_ids(col_group, j, columns, HAS_GROUPS),
            HAS_TARGET, HAS_LABELS, HAS_GROUPS, BM, BN,
        )  # fmt: skip
        keep = counted(positive, excluded, DENOMINATOR, HAS_TARGET)
        keep = keep & (i < rows)[:, None] & (j < columns)[None, :]
        if HAS_TARGET:
            keep = keep & ~positive
        lent = tl.zeros([OTHER], tl.float32)
        if HAS_OTHER_BIAS:
            lent = (
                tl.load(of_other + other, mask=other < other_size, other=0).to(tl.float32) * LOG2_E
            )
        lent = tl.expand_dims(lent, 1 - AXIS)
        near = tl.where(keep, tl.fma(products, high, 0.0) + lent, float("-inf"))
        largest = tl.maximum(maximum, tl.max(near, AXIS))
        base = tl.where(largest == float("-inf"), 0.0, largest)
        exponent = exponent_below(products, high, low, tl.expand_dims(base, AXIS), -lent)
        e = tl.where(keep, tl.exp2(exponent), 0.0)
        total = total * tl.exp2(maximum - base) + tl.sum(e, AXIS)
        maximum = largest
    result = in_nats(maximum.to(tl.float64) + tl.log2(total.to(tl.float64)))
    result += own_biases(bias, of_own, own, size, HAS_BIAS, HAS_OWN_BIAS)
    result = tl.where(total == 0, float("-inf"), result)
    of_targets = tl.load(lse + own, mask=is_flagged, other=0)
    tl.store(lse + own, log_add_exp(result, of_targets), mask=is_flagged)
