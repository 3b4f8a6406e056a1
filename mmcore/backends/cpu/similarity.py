"""Launches the kernels of the similarity matrix.

Features are read in their own dtype, products are summed in float32, statistics are float64, and
every gradient is rounded once, to its input's dtype.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import kept_memory
from mmcore.backends.cpu.arrays import (
    double,
    new,
    number,
    rows,
    rows_or_none,
    threads,
    vector,
    vector_or_none,
    zeros,
)
from mmcore.backends.cpu.module import _C
from mmcore.backends.inputs import SimilarityInputs, as_inputs


def kept_tiles(workspace: int, rows: int, columns: int, *_: bool) -> int:
    """Float32 numbers of tiles to keep: the workspace, or the matrix in whole blocks."""
    margin = 2048  # blocks reach beyond the matrix, and beyond every stripe of it
    size: int = torch.sym_min(workspace // 4, (rows + margin) * (columns + margin))
    return size


class Similarity(SimilarityInputs):
    """One similarity matrix as the compiled module takes it."""

    __slots__ = ()

    @property
    def columns(self) -> int:
        """M."""
        return (self.x if self.y is None else self.y).shape[0]

    def computable(self) -> Similarity:
        """The matrix itself, or with y filled in where y is x but half the matrix is not enough."""
        if self.y is not None or self._is_half_enough():
            return self
        return self._replace(
            y=self.x, col_bias=self.row_bias, col_label=self.row_label, col_group=self.row_group
        )

    def _is_half_enough(self) -> bool:
        """True if only rows are wanted, or (j, i) counts whenever (i, j) does."""
        if not self.has_columns or self.target is None:
            return True
        if self.denominator != "all":
            return False
        if self.row_group is None:
            return True
        # The pair that a target names is counted although its groups match. The mirrored pair is
        # only if it is named as well.
        target, group = self.target, self.row_group
        named = target.clamp(0, len(target) - 1)
        is_kept_apart = (target >= 0) & (group != -1) & (group[named] == group)
        is_mutual = target[named] == torch.arange(len(target), device="cpu")
        return not bool((is_kept_apart & ~is_mutual).any())

    def arrays(self) -> Any:
        """What the compiled module takes."""
        row_label, col_label = _dense_ids(self.row_label, self.col_label)
        row_group, col_group = _dense_ids(self.row_group, self.col_group)
        return _C.SimilarityInputs(
            rows(self.x), rows_or_none(self.y), number(self.scale), number(self.bias),
            vector_or_none(self.row_bias, torch.float64),
            vector_or_none(self.col_bias, torch.float64),
            vector_or_none(self.target), row_label, col_label, row_group, col_group,
            self.denominator, self.has_columns, self.multiplies_bfloat16, self.positives,
        )  # fmt: skip


def softmax_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept_size = arguments
    matrix = Similarity(*described).computable()
    sizes = (matrix.x.shape[0], matrix.columns if matrix.has_columns else 0) * 2
    statistics = [new(size, torch.float64) for size in sizes]
    kept = kept_memory.take(kept_size)
    row_lse, col_lse, row_pos, col_pos = map(vector, statistics)
    _C.softmax_similarity_forward(
        matrix.arrays(), row_lse, col_lse, row_pos, col_pos, vector(kept), threads()
    )
    return (*statistics, kept)


def softmax_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, row_lse, col_lse, row_pos, col_pos, kept = arguments[:20]
    *upstream, wanted = arguments[20:]
    matrix, is_symmetric = Similarity(*described).computable(), described[1] is None
    gradients = Gradients.of(matrix, is_symmetric, wanted)
    adds_columns = is_symmetric and matrix.y is not None
    grad_row_bias = new(matrix.x.shape[0], torch.float64) if wanted[4] else None
    wants_columns = wanted[5] or (adds_columns and wanted[4])
    grad_col_bias = new(matrix.columns, torch.float64) if wants_columns else None
    grad_row_lse, grad_col_lse, grad_row_pos, grad_col_pos = map(vector, upstream)
    grad_scale = _C.softmax_similarity_backward(
        matrix.arrays(), vector(row_lse), vector(col_lse), vector(row_pos), vector(col_pos),
        grad_row_lse, grad_col_lse, grad_row_pos, grad_col_pos, vector(kept),
        *gradients.arrays(), vector_or_none(grad_row_bias), vector_or_none(grad_col_bias),
        threads(),
    )  # fmt: skip
    if adds_columns and grad_row_bias is not None and grad_col_bias is not None:
        grad_row_bias += grad_col_bias
    values = (*gradients.fold(), grad_scale, None, grad_row_bias, grad_col_bias)
    return as_inputs(_as_tensors(values), described[:6], wanted)


def sigmoid_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, keeps_gradients = arguments
    matrix, is_symmetric = _sigmoid_matrix(*described), described[1] is None
    if not keeps_gradients:
        total, positive = _C.sigmoid_similarity_forward(matrix.arrays(), threads())
        return double(total), double(positive), new(0), new(0, torch.float64)
    wanted = (True, not is_symmetric, True)
    gradients = Gradients.of(matrix, is_symmetric, wanted, in_one_piece=True)
    total, positive, *sums = _C.sigmoid_similarity_gradients(
        matrix.arrays(), 1.0, -1.0, *gradients.arrays(), True, threads()
    )
    gradients.fold()
    return double(total), double(positive), gradients.memory, double(sums)


def sigmoid_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept, kept_sums, grad_total, grad_positive, wanted = arguments
    matrix, is_symmetric = _sigmoid_matrix(*described), described[1] is None
    of_total, of_positive = number(grad_total), number(grad_positive)
    likes = described[:4]
    if kept.numel() > 0 and of_total == -of_positive:
        sizes = [0 if like is None else like.numel() for like in likes[:2]]
        flat = kept.split(sizes)
        values: list[Any] = [
            None if like is None or not is_wanted else (part * of_total).view(like.shape)
            for part, like, is_wanted in zip(flat, likes, wanted, strict=False)
        ]
        return as_inputs([*values, *(kept_sums * of_total)], likes, wanted)
    gradients = Gradients.of(matrix, is_symmetric, wanted)
    _, _, grad_scale, grad_bias = _C.sigmoid_similarity_gradients(
        matrix.arrays(), of_total, of_positive, *gradients.arrays(), wanted[3], threads()
    )
    return as_inputs(_as_tensors((*gradients.fold(), grad_scale, grad_bias)), likes, wanted)


def hardest_negatives(*described: Any) -> tuple[Tensor, Tensor]:
    matrix = Similarity(*described)
    rows, columns = (new(size, torch.int64) for size in (matrix.x.shape[0], matrix.columns))
    _C.hardest_negatives(matrix.arrays(), vector(rows), vector(columns), threads())
    return rows, columns


def _sigmoid_matrix(
    x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *arguments: Any
) -> Similarity:
    *pairs, multiplies_bfloat16 = arguments
    described = (x, y, scale, bias, None, None, *pairs, "all", True, multiplies_bfloat16)
    return Similarity(*described).computable()


class Gradients(NamedTuple):
    """float32 memory, zeroed, for the gradients of x and y."""

    x: Tensor | None
    y: Tensor | None
    memory: Tensor  # of both, flat, where they are in one piece
    adds_y: bool  # y is x, but the matrix is computed in full

    @staticmethod
    def of(
        matrix: Similarity, is_symmetric: bool, wanted: Sequence[bool], in_one_piece: bool = False
    ) -> Gradients:
        """Memory for what is `wanted` of x, y and scale; the scale's gradient comes from either."""
        wants_x, wants_y, wants_scale = wanted[:3]
        width, adds_y = matrix.x.shape[1], is_symmetric and matrix.y is not None
        wants_x = wants_x or (wants_scale and not wants_y)
        wants_y = matrix.y is not None and (wants_y or (adds_y and wants_x))
        x_size = matrix.x.numel() if wants_x else 0
        y_size = matrix.columns * width if wants_y else 0
        if in_one_piece and not adds_y:
            memory = zeros(x_size + y_size)
            x, y = memory.split([x_size, y_size])
        else:
            memory = x = zeros(x_size)
            y = zeros(y_size)
        of_x, of_y = x.view(-1, width) if wants_x else None, y.view(-1, width) if wants_y else None
        return Gradients(of_x, of_y, memory, adds_y)

    def arrays(self) -> tuple[Any, Any]:
        """What the compiled module writes to."""
        return rows_or_none(self.x), rows_or_none(self.y)

    def fold(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of the op's inputs; where y is x the one of y is added to that of x."""
        if not self.adds_y or self.x is None or self.y is None:
            return self.x, self.y
        return self.x.add_(self.y), None


def _as_tensors(values: Sequence[Any]) -> list[Tensor | None]:
    """Numbers as float64 tensors."""
    return [
        value if value is None or isinstance(value, Tensor) else double(value) for value in values
    ]


def _dense_ids(row: Tensor | None, col: Tensor | None) -> tuple[Any, Any]:
    """Labels or groups of both sides as int32 numbers from 0; −1 stays −1."""
    if row is None:
        return None, None
    both = row if col is None else torch.cat([row, col])
    _, ids = both.unique(return_inverse=True)
    ids = ids.to(torch.int32).masked_fill_(both == -1, -1)
    rows = row.shape[0]
    return vector(ids[:rows]), None if col is None else vector(ids[rows:])
