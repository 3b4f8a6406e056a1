"""Launches the kernels of the prefixes of the width: one pass over the matrix for all of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmcore.backends import kept_memory
from mmcore.backends.cpu.arrays import double, new, rows_or_none, threads, vector
from mmcore.backends.cpu.module import _C
from mmcore.backends.cpu.projection import l2_normalize, l2_normalize_backward
from mmcore.backends.cpu.similarity import (
    Similarity,
    kept_tiles,
    softmax_similarity,
    softmax_similarity_backward,
)
from mmcore.backends.prefixes import PrefixCall, PrefixLoop

# For prefixes whose rows lie too far apart for the kernel.
ONE_BY_ONE = PrefixLoop(
    l2_normalize, l2_normalize_backward, softmax_similarity, softmax_similarity_backward
)


def kept_products(workspace: int, rows: int, columns: int, ends: Sequence[int]) -> int:
    """Float32 numbers of products to keep, of all prefixes if the workspace holds them."""
    of_one = kept_tiles(workspace, rows, columns)
    size: int = torch.sym_min(workspace // 4, len(ends) * of_one)
    return size


def prefix_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept_size = arguments
    call = PrefixCall(*described)
    count, columns, prefixes = call.x.shape[0], call.y.shape[0], len(call.ends)
    row_lse, col_lse, row_pos = (
        new((prefixes, size), torch.float64) for size in (count, columns, count)
    )
    kept = kept_memory.take(kept_size)
    untrusted = _C.prefix_similarity_forward(
        _matrix(call).arrays(), list(call.ends), call.eps, vector(row_lse.view(-1)),
        vector(col_lse.view(-1)), vector(row_pos.view(-1)), vector(kept), threads(),
    )  # fmt: skip
    is_apart = torch.zeros(prefixes, dtype=torch.bool, device="cpu")
    for k in untrusted:
        is_apart[k] = True
        row_lse[k], col_lse[k], row_pos[k] = ONE_BY_ONE.statistics(call, call.ends[k])
    return row_lse, col_lse, row_pos, kept, is_apart


def prefix_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, row_lse, col_lse, row_pos, kept, is_apart = arguments[:14]
    *upstream, wanted = arguments[14:]
    call = PrefixCall(*described)
    together, apart = (
        [k for k, apart in enumerate(is_apart) if apart == which] for which in (0, 1)
    )
    if together:
        # What is kept was laid out for all prefixes.
        kept = new(0) if apart else kept
        statistics = (row_lse, col_lse, row_pos)
        sums = _gradients(call, together, statistics, upstream, kept, wanted)
    else:
        sums = call.zeros()
    sums = ONE_BY_ONE.add_gradients(call, apart, (row_lse, col_lse), upstream, sums)
    return call.as_inputs(sums, wanted)


def _gradients(
    call: PrefixCall, prefixes: Sequence[int], statistics: Sequence[Tensor],
    upstream: Sequence[Tensor], kept: Tensor, wanted: Sequence[bool],
) -> tuple[Tensor, ...]:  # fmt: skip
    """float32 gradients of x and y and that of the scale, of some prefixes; zeros if not wanted."""
    row_lse, col_lse, row_pos, grad_row_lse, grad_col_lse, grad_row_pos = (
        vector(part[prefixes].reshape(-1)) for part in (*statistics, *upstream)
    )
    sums = call.zeros()
    ends = [call.ends[k] for k in prefixes]
    of_x, of_y = (
        rows_or_none(part if is_wanted else None)
        for part, is_wanted in zip(sums[:2], wanted[:2], strict=True)
    )
    grad_scale = _C.prefix_similarity_backward(
        _matrix(call).arrays(), ends, call.eps, row_lse, col_lse, row_pos, grad_row_lse,
        grad_col_lse, grad_row_pos, vector(kept), of_x, of_y, threads(),
    )  # fmt: skip
    return sums[0], sums[1], double(grad_scale)


def _matrix(call: PrefixCall) -> Similarity:
    return Similarity(*call.matrix(call.x, call.y))
