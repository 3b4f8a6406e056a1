"""The forward of softmax_similarity: its launches.

Log-sum-exps of positives take a second pass, which counts positives alone.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs, SoftmaxStatistics
from mmcore.backends.triton import hopper
from mmcore.backends.triton.arguments import BothSides, Size
from mmcore.backends.triton.inputs import (
    count_col_positives,
    count_row_positives,
    ids,
    operands,
    pairs,
    pointer,
    prepared,
    rounded,
    settings,
    shape,
    sides,
    strides,
    tile_for,
    which_biases,
)
from mmcore.backends.triton.launch import slab_rows
from mmcore.backends.triton.softmax_similarity.exponential_sums import (
    ExponentialSums,
    Slab,
    running_log_sum_exp_kernel,
    sum_exponentials_kernel,
)
from mmcore.backends.triton.softmax_similarity.kept_exponentials import as_operand, as_rows
from mmcore.backends.triton.softmax_similarity.log_sum_exps import (
    BLOCK,
    SideStatistics,
    SideSums,
    Targets,
    log_sum_exps_kernel,
)
from mmcore.backends.triton.softmax_similarity.shared_shift import SharedShift, shared_shift

# Programs of a forward that keep the largest of GPUs busy several times over.
ENOUGH_PROGRAMS = 2048


class Sums(NamedTuple):
    """Partial sums of rows, or of columns: (parts, size)."""

    total: Tensor  # Σ E
    positive: Tensor  # Σ logits of positives by label; empty without labels

    def add(self, place: slice, parts: Sums) -> None:
        """Adds those of some rows or columns to sums in one part, float64."""
        for whole, partial in zip(self, parts, strict=True):
            if whole.numel():
                whole[0, place].add_(partial.sum(0, dtype=torch.float64))


def forward(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    """The statistics, with `kept_size` float32 numbers for the backward."""
    found = _one_pass(inputs, kept_size)
    if inputs.positives == "sum":
        return found
    positives = _one_pass(inputs.among_positives(), 0)
    return found._replace(row_pos=positives.row_lse, col_pos=positives.col_lse)


def _one_pass(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    inputs = prepared(inputs)
    shift = shared_shift(inputs, tallies=inputs.has_columns)
    kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
    multiplied = rounded(inputs)
    by_rows, by_columns = _sum_exponentials(multiplied, shift, kept)
    rows, columns = _statistics(inputs, shift, by_rows, by_columns)
    _add_flagged(multiplied, shift, rows, is_rows=True)
    if inputs.has_columns:
        _add_flagged(multiplied, shift, columns, is_rows=False)
    return SoftmaxStatistics(rows.lse, columns.lse, rows.pos, columns.pos, kept)


def _sum_exponentials(
    inputs: SimilarityInputs, shift: SharedShift, kept: Tensor
) -> tuple[Sums, Sums]:
    """Sums by rows and by columns; fills `kept`."""
    (rows, columns), x = shape(inputs), inputs.x
    block = (hopper.EXACT_TILE if hopper.serves(inputs) else tile_for(inputs, "sums")).BM
    has_labels = inputs.row_label is not None
    rows_of_e = as_rows(kept, columns)
    size = slab_rows(x, columns, block, 2 if has_labels else 1)
    if size >= rows:
        return _sum_slab(inputs, shift, slice(0, rows), rows_of_e)
    sums_columns = sides(inputs).HAS_COLUMNS
    row_sums, col_sums = (
        Sums(*(
            x.new_zeros((1, length if is_needed else 0), dtype=torch.float64)
            for is_needed in (is_there, is_there and has_labels)
        ))
        for length, is_there in ((rows, True), (columns, sums_columns))
    )  # fmt: skip
    for first in range(0, rows, size):
        slab = slice(first, min(first + size, rows))
        by_rows, by_columns = _sum_slab(inputs, shift, slab, rows_of_e)
        row_sums.add(slab, by_rows)
        col_sums.add(slice(columns), by_columns)
    return row_sums, col_sums


def _sum_slab(
    inputs: SimilarityInputs, shift: SharedShift, slab: slice, rows_of_e: Tensor
) -> tuple[Sums, Sums]:
    """Partial sums along the rows of a slab, by strips of columns, and along its columns."""
    (rows, columns), tile, x = shape(inputs), tile_for(inputs, "sums"), inputs.x
    count = slab.stop - slab.start
    if hopper.serves(inputs):
        found = hopper.launches().sum_exponentials(inputs, shift.numbers, slab, rows_of_e)
        nothing = x.new_empty(0, dtype=torch.float32)
        by_rows, by_columns = (Sums(total, nothing) for total in found)
        return by_rows, by_columns
    blocks, tiles = triton.cdiv(count, tile.BM), triton.cdiv(columns, tile.BN)
    strips = min(tiles, triton.cdiv(ENOUGH_PROGRAMS, blocks))
    strip_tiles = triton.cdiv(tiles, strips)
    strips = triton.cdiv(tiles, strip_tiles)
    which = sides(inputs)
    # No program writes half of the sums of a symmetric matrix.
    new = x.new_zeros if which.IS_SYMMETRIC else x.new_empty

    def partial(parts: int, size: int, is_needed: bool) -> Sums:
        needed = (is_needed, is_needed and inputs.row_label is not None)
        return Sums(*(new((parts, size if it else 0), dtype=torch.float32) for it in needed))

    by_rows, by_columns = partial(strips, count, True), partial(blocks, columns, which.HAS_COLUMNS)
    kept_rows, kept_stride = rows_of_e.shape
    sum_exponentials_kernel[(blocks * strips,)](
        *operands(inputs, tile), shift.numbers, inputs.scale, shift.row_side, shift.col_side,
        ids(inputs),
        ExponentialSums(by_rows.total, by_columns.total, by_rows.positive, by_columns.positive),
        as_operand(rows_of_e, tile), Slab(slab.start, count, strip_tiles, kept_rows),
        Size(rows, columns), strides(inputs)._replace(kept=kept_stride),
        SIDES=which, KEEPS=kept_rows > 0, **settings(inputs, tile),
    )  # fmt: skip
    return by_rows, by_columns


def _statistics(
    inputs: SimilarityInputs, shift: SharedShift, by_rows: Sums, by_columns: Sums
) -> tuple[SideStatistics, SideStatistics]:
    """Those of rows and of columns; where flagged, of the targets alone."""
    (rows, columns), has_columns = shape(inputs), inputs.has_columns
    row_out = _empty_statistics(rows, inputs.x)
    col_out = _empty_statistics(columns if has_columns else 0, inputs.x)
    block = BLOCK.value
    programs = triton.cdiv(rows, block) + (triton.cdiv(columns, block) if has_columns else 0)
    counts = [count_row_positives(inputs), count_col_positives(inputs) if has_columns else None]
    log_sum_exps_kernel[(programs,)](
        *(SideSums(*sums, len(sums.total)) for sums in (by_rows, by_columns)), shift.shared,
        pointer(inputs.bias, inputs.x), shift.row_side, shift.col_side,
        BothSides(*(pointer(count, inputs.x) for count in counts)),
        Targets(ids(inputs).target, shift.tally, shift.logits), row_out, col_out,
        Size(rows, columns), PAIRS=pairs(inputs), BIASES=which_biases(inputs),
        IS_MIRRORED=inputs.is_half_enough,
    )  # fmt: skip
    return row_out, col_out


def _empty_statistics(size: int, like: Tensor) -> SideStatistics:
    """Those of one side, to be written."""
    lse, pos = (like.new_empty(size, dtype=torch.float64) for _ in range(2))
    return SideStatistics(lse, pos, like.new_empty(size, dtype=torch.int8))


def _add_flagged(
    inputs: SimilarityInputs, shift: SharedShift, side: SideStatistics, is_rows: bool
) -> None:
    """Adds all that is not a target to flagged log-sum-exps.

    Only the device knows whether any are flagged: programs without one return at once.
    """
    rows, columns = shape(inputs)
    tile = tile_for(inputs, "running")
    size, block = (rows, tile.BM) if is_rows else (columns, tile.BN)
    running_log_sum_exp_kernel[(triton.cdiv(size, block),)](
        *operands(inputs, tile), shift.numbers, shift.row_side, shift.col_side, side.flagged,
        side.lse, ids(inputs), Size(rows, columns), strides(inputs),
        BY_COLUMNS=not is_rows, BIASES=which_biases(inputs), **settings(inputs, tile),
    )  # fmt: skip
