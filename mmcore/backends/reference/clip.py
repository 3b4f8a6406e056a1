"""clip in plain torch; the formulas: ops/clip.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxUpstream,
    SoftmaxWanted,
    arithmetic_dtype,
)
from mmcore.backends.reference import softmax_similarity


class ClipInputs(NamedTuple):
    """Row i of x and row i of y belong together."""

    x: Tensor  # (N, D)
    y: Tensor  # (N, D)
    scale: Tensor  # 0-D
    precision: str = "highest"  # of products: ops/precision.py

    def as_similarity(self, target: Tensor | None) -> SimilarityInputs:
        """The similarity matrix, of which the rows' positives are `target`."""
        return SimilarityInputs(
            self.x, self.y, self.scale, None, None, None, target, None, None, None, None,
            precision=self.precision,
        )  # fmt: skip


class ClipResults(NamedTuple):
    """What clip finds."""

    loss: Tensor  # 0-D float32; float64 for float64
    kept: Tensor  # float32: the backend's, for the backward


class ClipUpstream(NamedTuple):
    """The gradient of the loss."""

    loss: Tensor


class ClipWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    scale: bool


def forward(inputs: ClipInputs, kept_size: int) -> ClipResults:
    x = inputs.x
    row_lse, col_lse, row_pos, _, _ = softmax_similarity.forward(_matrix(inputs), 0)
    loss = ((row_lse + col_lse) / 2 - row_pos).mean()
    kept = x.new_empty(kept_size, dtype=torch.float32)
    return ClipResults(loss.to(arithmetic_dtype(x.dtype)), kept)


def backward(
    inputs: ClipInputs, results: ClipResults, upstream: ClipUpstream, wanted: ClipWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    matrix = _matrix(inputs)
    statistics = softmax_similarity.forward(matrix, 0)
    mean = (upstream.loss.double() / inputs.x.shape[0]).expand(inputs.x.shape[0])
    of_statistics = SoftmaxUpstream(mean / 2, mean / 2, -mean, torch.zeros_like(mean))
    of_matrix = SoftmaxWanted(*wanted)
    return softmax_similarity.backward(matrix, statistics, of_statistics, of_matrix, rounds)[:3]


def _matrix(inputs: ClipInputs) -> SimilarityInputs:
    target: Tensor = torch.arange(inputs.x.shape[0], device=inputs.x.device)
    return inputs.as_similarity(target)
