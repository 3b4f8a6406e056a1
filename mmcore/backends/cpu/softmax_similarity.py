"""Launches the kernels of softmax_similarity.

Features are read in their own dtype, products are summed in float32, statistics are float64, and
gradients are float32 sums.
"""

from __future__ import annotations

import torch

from mmcore import _C
from mmcore.backends import buffer_pool
from mmcore.backends.cpu.arrays import double, new, threads, vector, vector_or_none
from mmcore.backends.cpu.inputs import GradientMemory, as_arrays, computable
from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)


def forward(inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics:
    matrix = computable(inputs)
    count, columns = matrix.x.shape[0], matrix.keys.shape[0] if matrix.has_columns else 0
    found = SoftmaxStatistics(
        row_lse=new(count, torch.float64), col_lse=new(columns, torch.float64),
        row_pos=new(count, torch.float64), col_pos=new(columns, torch.float64),
        kept=buffer_pool.take(kept_size),
    )  # fmt: skip
    row_lse, col_lse, row_pos, col_pos, kept = map(vector, found)
    _C.softmax_similarity_forward(
        as_arrays(matrix), row_lse, col_lse, row_pos, col_pos, kept, threads()
    )
    return found


def backward(
    inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream,
    wanted: SoftmaxWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    matrix, is_symmetric = computable(inputs), inputs.y is None
    memory = GradientMemory.of(
        matrix, is_symmetric, (wanted.x, wanted.y, wanted.scale), are_rounded=rounds
    )
    adds_columns = is_symmetric and matrix.y is not None
    grad_row_bias = new(matrix.x.shape[0], torch.float64) if wanted.row_bias else None
    wants_columns = wanted.col_bias or (adds_columns and wanted.row_bias)
    grad_col_bias = new(matrix.keys.shape[0], torch.float64) if wants_columns else None
    row_lse, col_lse, row_pos, col_pos, kept = map(vector, statistics)
    grad_row_lse, grad_col_lse, grad_row_pos, grad_col_pos = map(vector, upstream)
    grad_scale = _C.softmax_similarity_backward(
        as_arrays(matrix), row_lse, col_lse, row_pos, col_pos, grad_row_lse, grad_col_lse,
        grad_row_pos, grad_col_pos, kept, *memory.arrays(),
        vector_or_none(grad_row_bias), vector_or_none(grad_col_bias), threads(),
    )  # fmt: skip
    if adds_columns and grad_row_bias is not None and grad_col_bias is not None:
        grad_row_bias += grad_col_bias
    return *memory.fold(), double(grad_scale), grad_row_bias, grad_col_bias
