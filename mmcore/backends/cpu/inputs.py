"""One similarity matrix as the compiled module takes it, and memory for its gradients."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore import _C
from mmcore.backends.cpu.arrays import (
    Array,
    number,
    rows,
    rows_or_none,
    vector,
    vector_or_none,
    zeros,
)
from mmcore.backends.inputs import SimilarityInputs

FLOATS_PER_LINE = 16  # of the cache


def computable(inputs: SimilarityInputs) -> SimilarityInputs:
    """The matrix itself, or with y filled in where y is x but half the matrix is not enough."""
    if inputs.y is not None or _is_transpose_enough(inputs):
        return inputs
    return inputs.spelled_out()._replace(y=inputs.x)


def _is_transpose_enough(inputs: SimilarityInputs) -> bool:
    """True if only rows are wanted, or (j, i) counts whenever (i, j) does."""
    if not inputs.has_columns or inputs.target is None:
        return True
    if inputs.denominator != "all":
        return False
    if inputs.row_group is None:
        return True
    # The pair that a target names is counted although its groups match. The mirrored pair is
    # only if it is named as well.
    target, group = inputs.target, inputs.row_group
    named = target.clamp(0, len(target) - 1)
    is_kept_apart = (target >= 0) & (group != -1) & (group[named] == group)
    is_mutual = target[named] == torch.arange(len(target), device="cpu")
    return not bool((is_kept_apart & ~is_mutual).any())


def as_arrays(inputs: SimilarityInputs) -> _C.SimilarityInputs:
    """What the compiled module takes."""
    row_label, col_label = _dense_ids(inputs.row_label, inputs.col_label)
    row_group, col_group = _dense_ids(inputs.row_group, inputs.col_group)
    return _C.SimilarityInputs(
        rows(inputs.x), rows_or_none(inputs.y), number(inputs.scale), number(inputs.bias),
        vector_or_none(inputs.row_bias, torch.float64),
        vector_or_none(inputs.col_bias, torch.float64),
        vector_or_none(inputs.target), row_label, col_label, row_group, col_group,
        inputs.denominator, inputs.has_columns, inputs.precision, inputs.positives,
    )  # fmt: skip


def _dense_ids(row: Tensor | None, col: Tensor | None) -> tuple[Array | None, Array | None]:
    """Labels or groups of both sides as int32 numbers from 0; −1 stays −1."""
    if row is None:
        return None, None
    both = row if col is None else torch.cat([row, col])
    _, ids = both.unique(return_inverse=True)
    ids = ids.to(torch.int32).masked_fill_(both == -1, -1)
    count = row.shape[0]
    return vector(ids[:count]), None if col is None else vector(ids[count:])


def _spread_rows(count: int, width: int) -> Tensor:
    """Zeros whose rows are an odd number of cache lines apart.

    At a power of two, the rows of a tile of sums would share few sets of the cache.
    """
    lines = -(-width // FLOATS_PER_LINE)
    return zeros((count, (lines + 1 - lines % 2) * FLOATS_PER_LINE))[:, :width]


class GradientMemory(NamedTuple):
    """float32 memory, zeroed, for the gradients of x and y."""

    x: Tensor | None
    y: Tensor | None
    whole: Tensor  # of both, flat, where they are in one piece
    adds_y: bool  # y is x, but the matrix is computed in full

    @staticmethod
    def of(
        matrix: SimilarityInputs, is_symmetric: bool, wanted: Sequence[bool],
        in_one_piece: bool = False, are_rounded: bool = False,
    ) -> GradientMemory:  # fmt: skip
        """Memory for what is `wanted` of x, y and scale; the scale's gradient comes from either.

        With `are_rounded`, gradients of 16-bit features are views that the caller rounds.
        """
        wants_x, wants_y, wants_scale = wanted
        width, adds_y = matrix.x.shape[1], is_symmetric and matrix.y is not None
        wants_x = wants_x or (wants_scale and not wants_y)
        wants_y = matrix.y is not None and (wants_y or (adds_y and wants_x))
        x_size = matrix.x.numel() if wants_x else 0
        y_size = matrix.keys.shape[0] * width if wants_y else 0
        if in_one_piece and not adds_y:
            whole = zeros(x_size + y_size)
            x, y = whole.split([x_size, y_size])
        elif are_rounded and matrix.x.dtype != torch.float32:
            x = _spread_rows(x_size // max(width, 1), width)
            y = _spread_rows(y_size // max(width, 1), width)
            return GradientMemory(x if wants_x else None, y if wants_y else None, x, adds_y)
        else:
            whole = x = zeros(x_size)
            y = zeros(y_size)
        return GradientMemory(
            x.view(-1, width) if wants_x else None, y.view(-1, width) if wants_y else None,
            whole, adds_y,
        )  # fmt: skip

    def arrays(self) -> tuple[Array | None, Array | None]:
        """What the compiled module writes to."""
        return rows_or_none(self.x), rows_or_none(self.y)

    def fold(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the op's inputs; where y is x the one of y is added to that of x."""
        if not self.adds_y or self.x is None or self.y is None:
            return self.x, self.y
        return self.x.add_(self.y), None
