"""Backend modules that composite families call, as protocols."""

from __future__ import annotations

from typing import NamedTuple, Protocol

from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)


class Normalized(NamedTuple):
    """What l2_normalize returns."""

    y: Tensor  # (N, D), in the dtype of x
    inverse_norm: Tensor  # (N,), float32; float64 for float64


class NormalizeFamily(Protocol):
    """A backend's l2_normalize."""

    def forward(self, x: Tensor, eps: float) -> Normalized: ...

    def backward(self, y: Tensor, inverse_norm: Tensor, grad_y: Tensor, eps: float) -> Tensor: ...


class SoftmaxFamily(Protocol):
    """A backend's softmax_similarity."""

    def forward(self, inputs: SimilarityInputs, kept_size: int) -> SoftmaxStatistics: ...

    def backward(
        self, inputs: SimilarityInputs, statistics: SoftmaxStatistics, upstream: SoftmaxUpstream,
        wanted: SoftmaxWanted, rounds: bool,
    ) -> Gradients: ...  # fmt: skip
