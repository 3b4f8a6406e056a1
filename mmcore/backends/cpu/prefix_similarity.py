"""Launches the kernels of prefix_similarity: one pass over the matrix for all prefixes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from mmcore import _C
from mmcore.backends import buffer_pool
from mmcore.backends.cpu import l2_normalize, softmax_similarity
from mmcore.backends.cpu.arrays import double, new, rows, threads, vector
from mmcore.backends.cpu.inputs import as_arrays
from mmcore.backends.inputs import Gradients
from mmcore.backends.reference.prefix_similarity import (
    PrefixInputs,
    PrefixLoop,
    PrefixStatistics,
    PrefixSums,
    PrefixUpstream,
    PrefixWanted,
)

# For prefixes whose rows lie too far apart for the kernel.
LOOP = PrefixLoop(l2_normalize, softmax_similarity)


def forward(inputs: PrefixInputs, kept_size: int) -> PrefixStatistics:
    count, columns, prefixes = inputs.x.shape[0], inputs.y.shape[0], len(inputs.ends)
    row_lse, col_lse, row_pos = (
        new((prefixes, size), torch.float64) for size in (count, columns, count)
    )
    kept = buffer_pool.take(kept_size)
    untrusted = _C.prefix_similarity_forward(
        as_arrays(inputs.matrix(inputs.x, inputs.y)), list(inputs.ends), inputs.eps,
        vector(row_lse.view(-1)), vector(col_lse.view(-1)), vector(row_pos.view(-1)),
        vector(kept), threads(),
    )  # fmt: skip
    is_apart = torch.zeros(prefixes, dtype=torch.bool, device="cpu")
    for k in untrusted:
        is_apart[k] = True
        row_lse[k], col_lse[k], row_pos[k] = LOOP.statistics(inputs, inputs.ends[k])
    return PrefixStatistics(row_lse, col_lse, row_pos, kept, is_apart)


def backward(
    inputs: PrefixInputs, statistics: PrefixStatistics, upstream: PrefixUpstream,
    wanted: PrefixWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    together, apart = (
        [k for k, is_apart in enumerate(statistics.is_apart) if is_apart == which]
        for which in (0, 1)
    )
    sums = PrefixSums.zeros(inputs)
    if together:
        if apart:  # what is kept was laid out for all prefixes
            statistics = statistics._replace(kept=new(0))
        sums = _together(inputs, together, statistics, upstream, wanted, sums)
    return LOOP.add_gradients(inputs, apart, statistics, upstream, rounds, sums)


def _together(
    inputs: PrefixInputs, prefixes: Sequence[int], statistics: PrefixStatistics,
    upstream: PrefixUpstream, wanted: PrefixWanted, sums: PrefixSums,
) -> PrefixSums:  # fmt: skip
    """Adds what the kernel finds for some prefixes."""
    *found, kept, _ = statistics
    row_lse, col_lse, row_pos, grad_row_lse, grad_col_lse, grad_row_pos = (
        vector(part[prefixes].reshape(-1)) for part in (*found, *upstream)
    )
    grad_scale = _C.prefix_similarity_backward(
        as_arrays(inputs.matrix(inputs.x, inputs.y)), [inputs.ends[k] for k in prefixes],
        inputs.eps, row_lse, col_lse, row_pos, grad_row_lse, grad_col_lse, grad_row_pos,
        vector(kept), rows(sums.x) if wanted.x else None,
        rows(sums.y) if wanted.y else None, threads(),
    )  # fmt: skip
    return sums._replace(scale=sums.scale + double(grad_scale))
