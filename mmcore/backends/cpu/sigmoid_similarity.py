"""Launches the kernels of sigmoid_similarity; dtypes as in softmax_similarity."""

from __future__ import annotations

import torch

from mmcore import _C
from mmcore.backends.cpu.arrays import double, new, number, threads
from mmcore.backends.cpu.inputs import GradientMemory, as_arrays, computable
from mmcore.backends.inputs import (
    Gradients,
    SigmoidSums,
    SigmoidUpstream,
    SigmoidWanted,
    SimilarityInputs,
)


def forward(inputs: SimilarityInputs, kept_size: int) -> SigmoidSums:
    matrix, is_symmetric = computable(inputs), inputs.y is None
    if kept_size == 0:
        total, positive = _C.sigmoid_similarity_forward(as_arrays(matrix), threads())
        return SigmoidSums(double(total), double(positive), new(0), new(0, torch.float64))
    memory = GradientMemory.of(
        matrix, is_symmetric, (True, not is_symmetric, True), in_one_piece=True
    )
    total, positive, *sums = _C.sigmoid_similarity_gradients(
        as_arrays(matrix), 1.0, -1.0, *memory.arrays(), True, threads()
    )
    memory.fold()
    kept_sums = torch.stack([double(value) for value in sums])
    return SigmoidSums(double(total), double(positive), memory.whole, kept_sums)


def backward(
    inputs: SimilarityInputs, sums: SigmoidSums, upstream: SigmoidUpstream, wanted: SigmoidWanted,
    rounds: bool,
) -> Gradients:  # fmt: skip
    grad_total, grad_positive = number(upstream.total), number(upstream.positive)
    if sums.kept.numel() > 0 and grad_total == -grad_positive:
        return _cached(inputs, sums, grad_total, wanted)
    matrix = computable(inputs)
    memory = GradientMemory.of(
        matrix, inputs.y is None, (wanted.x, wanted.y, wanted.scale), are_rounded=rounds
    )
    _, _, grad_scale, grad_bias = _C.sigmoid_similarity_gradients(
        as_arrays(matrix), grad_total, grad_positive, *memory.arrays(), wanted.bias, threads()
    )
    return *memory.fold(), double(grad_scale), double(grad_bias)


def _cached(
    inputs: SimilarityInputs, sums: SigmoidSums, grad_total: float, wanted: SigmoidWanted
) -> Gradients:
    """From the gradients that the forward kept, which are for total 1 and positive −1."""
    size = inputs.x.numel()
    grad_x = sums.kept[:size] * grad_total if wanted.x else None
    grad_y = sums.kept[size:] * grad_total if wanted.y else None
    return grad_x, grad_y, *(sums.kept_sums * grad_total)
