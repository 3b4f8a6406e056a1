"""The loss of SigLIP by the reference's sigmoid_similarity; the formulas: ops/siglip.py."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
    arithmetic_dtype,
)
from mmcore.backends.reference import sigmoid_similarity


class SiglipInputs(NamedTuple):
    """A similarity matrix whose diagonal is positive."""

    x: Tensor  # (N, D)
    y: Tensor  # (N, D)
    scale: Tensor  # 0-D
    bias: Tensor | None  # 0-D
    precision: str = "highest"

    def matrix(self, target: Tensor | None) -> SimilarityInputs:
        """As sigmoid_similarity takes it."""
        x, y, scale, bias, precision = self
        return SimilarityInputs(
            x, y, scale, bias, None, None, target, None, None, None, None, precision=precision
        )


class SiglipResults(NamedTuple):
    """What siglip finds."""

    loss: Tensor  # 0-D, float32, or float64 for float64
    kept: Tensor  # float32: the backend's, for the gradients of x and y, or empty
    kept_sums: Tensor  # (2,) float64: gradients of scale and bias, or empty


class SiglipUpstream(NamedTuple):
    """The gradient of the loss."""

    loss: Tensor


class SiglipWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    scale: bool
    bias: bool


def forward(inputs: SiglipInputs, kept_size: int) -> SiglipResults:
    rows = inputs.x.shape[0]
    sums = sigmoid_similarity.forward(_matrix(inputs), kept_size)
    loss = (sums.total - sums.positive) / rows
    return SiglipResults(loss.to(arithmetic_dtype(inputs.x.dtype)), sums.kept, sums.kept_sums)


def backward(
    inputs: SiglipInputs, results: SiglipResults, upstream: SiglipUpstream, wanted: SiglipWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    matrix, of_total = _matrix(inputs), upstream.loss.double() / inputs.x.shape[0]
    nothing = of_total.new_empty(0)
    return sigmoid_similarity.backward(
        matrix, SigmoidSums(of_total, of_total, nothing.float(), nothing),
        SigmoidUpstream(of_total, -of_total), SigmoidWanted(*wanted), rounds,
    )  # fmt: skip


def _matrix(inputs: SiglipInputs) -> SimilarityInputs:
    return inputs.matrix(torch.arange(inputs.x.shape[0], device=inputs.x.device))
