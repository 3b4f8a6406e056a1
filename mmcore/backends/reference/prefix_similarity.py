"""prefix_similarity by a loop over the prefixes, on a backend's normalisation and statistics.

What a backend does that has no kernel for all prefixes at once. One normalised prefix of x and of y
is in memory at a time. The formulas: ops/prefix_similarity.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.families import NormalizeFamily, SoftmaxFamily
from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
    arithmetic_dtype,
)
from mmcore.backends.reference import l2_normalize, softmax_similarity


class PrefixInputs(NamedTuple):
    """Similarity matrices of prefixes of the width, with targets as positives."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    scale: Tensor  # 0-D
    ends: Sequence[int]  # of K prefixes, ascending
    eps: float
    target: Tensor  # (N,)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (M,)
    precision: str = "highest"

    def matrix(self, x: Tensor, y: Tensor) -> SimilarityInputs:
        """The similarity matrix of two normalised prefixes."""
        return SimilarityInputs(
            x=x, y=y, scale=self.scale, bias=None, row_bias=None, col_bias=None,
            target=self.target, row_label=None, col_label=None, row_group=self.row_group,
            col_group=self.col_group, precision=self.precision,
        )  # fmt: skip


class PrefixStatistics(NamedTuple):
    """What prefix_similarity finds; float64, but for what it keeps."""

    row_lse: Tensor  # (K, N)
    col_lse: Tensor  # (K, M)
    row_pos: Tensor  # (K, N)
    kept: Tensor  # float32: the backend's, for the backward
    is_apart: Tensor  # (K,) booleans


class PrefixUpstream(NamedTuple):
    """Gradients of the statistics."""

    row_lse: Tensor
    col_lse: Tensor
    row_pos: Tensor


class PrefixWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    scale: bool


class PrefixSums(NamedTuple):
    """Gradients that are being added up: float32, or float64 for float64 features."""

    x: Tensor
    y: Tensor
    scale: Tensor  # float64

    @staticmethod
    def zeros(inputs: PrefixInputs) -> PrefixSums:
        """Dense, whatever the strides of x and y."""
        dtype = arithmetic_dtype(inputs.x.dtype)
        grad_x, grad_y = (z.new_zeros(z.shape, dtype=dtype) for z in (inputs.x, inputs.y))
        return PrefixSums(grad_x, grad_y, torch.zeros_like(inputs.scale, dtype=torch.float64))


class PrefixLoop(NamedTuple):
    """The two families of a backend that are called for each prefix."""

    l2_normalize: NormalizeFamily
    softmax_similarity: SoftmaxFamily

    def forward(self, inputs: PrefixInputs, kept_size: int) -> PrefixStatistics:
        parts = [self.statistics(inputs, end) for end in inputs.ends]
        row_lse, col_lse, row_pos = (torch.stack(part) for part in zip(*parts, strict=True))
        kept = inputs.x.new_empty(kept_size, dtype=torch.float32)
        is_apart = inputs.x.new_ones(len(inputs.ends), dtype=torch.bool)
        return PrefixStatistics(row_lse, col_lse, row_pos, kept, is_apart)

    def statistics(self, inputs: PrefixInputs, end: int) -> tuple[Tensor, Tensor, Tensor]:
        """row_lse, col_lse and row_pos of one prefix."""
        x, y = (self.l2_normalize.forward(z[:, :end], inputs.eps).y for z in (inputs.x, inputs.y))
        found = self.softmax_similarity.forward(inputs.matrix(x, y), 0)
        return found.row_lse, found.col_lse, found.row_pos

    def backward(
        self, inputs: PrefixInputs, statistics: PrefixStatistics, upstream: PrefixUpstream,
        wanted: PrefixWanted, rounds: bool,
    ) -> Gradients:  # fmt: skip
        sums = PrefixSums.zeros(inputs)
        every = range(len(inputs.ends))
        return self.add_gradients(inputs, every, statistics, upstream, rounds, sums)

    def add_gradients(
        self, inputs: PrefixInputs, prefixes: Sequence[int], statistics: PrefixStatistics,
        upstream: PrefixUpstream, rounds: bool, sums: PrefixSums,
    ) -> PrefixSums:  # fmt: skip
        """The gradients that some prefixes send, added to `sums`."""
        dtype = inputs.x.dtype if rounds else arithmetic_dtype(inputs.x.dtype)
        for k in prefixes:
            x, y = (
                self.l2_normalize.forward(z[:, : inputs.ends[k]], inputs.eps)
                for z in (inputs.x, inputs.y)
            )
            row_lse, col_lse = statistics.row_lse[k], statistics.col_lse[k]
            kept = row_lse.new_empty(0, dtype=torch.float32)
            # A backward reads no sums of positives by columns: log-sum-exps take their place.
            found = SoftmaxStatistics(row_lse, col_lse, statistics.row_pos[k], col_lse, kept)
            grad_col_pos = torch.zeros_like(col_lse)
            gradients = self.softmax_similarity.backward(
                inputs.matrix(x.y, y.y), found,
                SoftmaxUpstream(
                    upstream.row_lse[k], upstream.col_lse[k], upstream.row_pos[k], grad_col_pos
                ),
                SoftmaxWanted(x=True, y=True, scale=True), rounds=rounds,
            )  # fmt: skip
            grad_x, grad_y, grad_scale, *_ = gradients
            assert grad_scale is not None
            sums = sums._replace(scale=sums.scale + grad_scale)
            for total, z, grad_z in ((sums.x, x, grad_x), (sums.y, y, grad_y)):
                assert grad_z is not None
                total[:, : inputs.ends[k]] += self.l2_normalize.backward(
                    z.y.to(dtype), z.inverse_norm, grad_z.to(dtype), inputs.eps
                )
        return sums


LOOP = PrefixLoop(l2_normalize, softmax_similarity)
forward, backward = LOOP.forward, LOOP.backward
