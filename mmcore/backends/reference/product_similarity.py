"""product_similarity on a backend's softmax_similarity; the formulas: ops/product_similarity.py.

Never stored: the logits, nor two keys at a time; the backward multiplies each again, and adds what
it finds to the gradients in place. Loop order: one matrix against the others' product after the
other. Precision: as softmax_similarity; gradients are added up in float32 (float64 for float64
features) and rounded once. Positives beside an order are float64, a slab of rows at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.families import SoftmaxFamily
from mmcore.backends.inputs import (
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
    arithmetic_dtype,
)
from mmcore.backends.reference import softmax_similarity

ROWS_AT_A_TIME = 1024


class ProductInputs(NamedTuple):
    """Modalities, of which each is compared with the product of all others."""

    features: Sequence[Tensor]  # M of (N, D)
    scale: Tensor  # 0-D
    order: Tensor | None  # (M, N) int64: a permutation of the rows of each
    dtype: torch.dtype  # of the operands of products
    precision: str = "highest"

    def matrix(self, m: int) -> SimilarityInputs:
        """Rows of one modality against their keys: the diagonal is positive."""
        x, key = self.features[m].to(self.dtype), self.product(m).to(self.dtype)
        return SimilarityInputs(
            x=x, y=key, scale=self.scale, bias=None, row_bias=None, col_bias=None,
            target=torch.arange(x.shape[0], device=x.device), row_label=None, col_label=None,
            row_group=None, col_group=None,
            denominator="all" if self.order is None else "negatives", has_columns=False,
            precision=self.precision,
        )  # fmt: skip

    def met(self, m: int, k: int) -> Tensor | None:
        """Which row of k is in each key that rows of m are compared with; None for the same row."""
        return None if self.order is None else self.order[k][self.order[m].argsort()]

    def product(self, m: int, *left_out: int) -> Tensor:
        """Of the modalities but m and those left out, each row in the place of its row of m."""
        factors = (
            self.features[k] if (rows := self.met(m, k)) is None else self.features[k][rows]
            for k in range(len(self.features))
            if k != m and k not in left_out
        )
        first = next(factors, self.features[0].new_ones(()))
        return reduce(torch.mul, factors, first)

    def slabs(self) -> list[slice]:
        """Ranges of rows."""
        rows = self.features[0].shape[0]
        return [slice(first, first + ROWS_AT_A_TIME) for first in range(0, rows, ROWS_AT_A_TIME)]

    def factors(self, rows: slice) -> Tensor:
        """Some rows of all modalities, float64."""
        return torch.stack([z[rows].double() for z in self.features])


class ProductStatistics(NamedTuple):
    """What product_similarity finds; float64, but for what it keeps."""

    row_lse: Tensor  # (M, N)
    row_pos: Tensor  # (M, N)
    kept: Sequence[Tensor]  # M of float32: the backend's, for the backward


class ProductUpstream(NamedTuple):
    """Gradients of the statistics."""

    row_lse: Tensor
    row_pos: Tensor


class ProductWanted(NamedTuple):
    """Which gradients are wanted."""

    features: Sequence[bool]
    scale: bool


class ProductSums(NamedTuple):
    """Sums of the gradients; None for a modality that wants none."""

    features: list[Tensor | None]
    scale: Tensor

    @staticmethod
    def zeros(inputs: ProductInputs, wanted: ProductWanted) -> ProductSums:
        dtype = arithmetic_dtype(inputs.features[0].dtype)
        sums = [
            z.new_zeros(z.shape, dtype=dtype) if is_wanted else None
            for z, is_wanted in zip(inputs.features, wanted.features, strict=True)
        ]
        return ProductSums(sums, torch.zeros_like(inputs.scale))

    def add(self, k: int, rows: Tensor | None, grad_key: Tensor, factor: Tensor) -> None:
        """grad_key·factor to the rows of a modality, in the order in which they were compared."""
        total = self.features[k]
        assert total is not None
        grad_key, factor = grad_key.to(total.dtype), factor.to(total.dtype)
        if rows is None:
            total.addcmul_(grad_key, factor)
        else:
            total.index_add_(0, rows, grad_key * factor)


class ProductLoop(NamedTuple):
    """The family of a backend that is called for each modality."""

    softmax_similarity: SoftmaxFamily

    def forward(self, inputs: ProductInputs, kept_size: int) -> ProductStatistics:
        every = range(len(inputs.features))
        found = [self.softmax_similarity.forward(inputs.matrix(m), kept_size) for m in every]
        positives = torch.stack([each.row_pos for each in found])
        if inputs.order is not None:
            slabs = [inputs.factors(rows).prod(0).sum(1) for rows in inputs.slabs()]
            positives = (inputs.scale * torch.cat(slabs)).repeat(len(every), 1)
        row_lse = torch.stack([each.row_lse for each in found])
        return ProductStatistics(row_lse, positives, [each.kept for each in found])

    def backward(
        self, inputs: ProductInputs, statistics: ProductStatistics, upstream: ProductUpstream,
        wanted: ProductWanted, rounds: bool,
    ) -> ProductSums:  # fmt: skip
        sums = ProductSums.zeros(inputs, wanted)
        if inputs.order is not None:
            _add_positives(inputs, upstream.row_pos.sum(0), sums, wanted)
            upstream = upstream._replace(row_pos=torch.zeros_like(upstream.row_pos))
        for m in range(len(inputs.features)):
            self._add_gradients(m, inputs, statistics, upstream, sums, wanted)
        return sums

    def _add_gradients(
        self, m: int, inputs: ProductInputs, statistics: ProductStatistics,
        upstream: ProductUpstream, sums: ProductSums, wanted: ProductWanted,
    ) -> None:  # fmt: skip
        """What rows of one modality send to themselves, to their keys and to the scale."""
        others = [k for k, total in enumerate(sums.features) if k != m and total is not None]
        row_lse = statistics.row_lse[m]
        nothing = row_lse.new_empty(0)
        found = SoftmaxStatistics(
            row_lse, nothing, statistics.row_pos[m], nothing, statistics.kept[m]
        )
        grad_x, grad_key, grad_scale, *_ = self.softmax_similarity.backward(
            inputs.matrix(m), found,
            SoftmaxUpstream(upstream.row_lse[m], nothing, upstream.row_pos[m], nothing),
            SoftmaxWanted(x=wanted.features[m], y=bool(others), scale=wanted.scale), rounds=False,
        )  # fmt: skip
        total = sums.features[m]
        if total is not None and grad_x is not None:
            total.add_(grad_x)
        if wanted.scale and grad_scale is not None:
            sums.scale.add_(grad_scale)
        del grad_x
        for k in others:
            assert grad_key is not None
            sums.add(k, inputs.met(m, k), grad_key, inputs.product(m, k))


def _add_positives(
    inputs: ProductInputs, gradient: Tensor, sums: ProductSums, wanted: ProductWanted
) -> None:
    """What the tuples as they are send to each of their rows, and to the scale."""
    for rows in inputs.slabs():
        factors, grad_rows = inputs.factors(rows), gradient[rows, None]
        if wanted.scale:
            sums.scale.add_((grad_rows * factors.prod(0)).sum())
        for k, total in enumerate(sums.features):
            if total is not None:
                others = torch.cat([factors[:k], factors[k + 1 :]]).prod(0)
                total[rows].add_(inputs.scale * grad_rows * others)


LOOP = ProductLoop(softmax_similarity)
forward, backward = LOOP.forward, LOOP.backward
