"""The error budget: no kernel may be further from float64 than twice what eager PyTorch is."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]


def assert_within_budget(
    name: str, actual: Tensor, eager: Sequence[Tensor], exact: Tensor, dtype: torch.dtype
) -> None:
    """max|actual − exact| <= 2·max|eager − exact| + eps·max|exact|, and everything finite.

    `eager` holds results of equivalent eager computations; the furthest from `exact` counts.
    """
    assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, expected {exact.shape}"
    assert torch.isfinite(actual).all(), f"{name}: not finite"
    error = _distance(actual, exact)
    eager_error = max(_distance(value, exact) for value in eager)
    largest = exact.abs().max().item()
    assert error <= 2 * eager_error + torch.finfo(dtype).eps * largest, (
        f"{name}: error {error:.3g}, eager's {eager_error:.3g}, largest value {largest:.3g}"
    )


def _distance(value: Tensor, exact: Tensor) -> float:
    return (value.double() - exact).abs().max().item()


def values_and_gradients(
    function: Function, inputs: Sequence[Tensor], dtype: torch.dtype
) -> list[Tensor]:
    """Outputs of `function` at `inputs` in `dtype`, then the gradient of each input.

    The gradients are those of a fixed random combination of the outputs, the same in every dtype.
    """
    # A view, where the dtype stays, so that strides stay: .to() may make a tensor dense.
    leaves = [
        (value.detach() if value.dtype == dtype else value.to(dtype)).requires_grad_()
        for value in inputs
    ]
    outputs = list(function(*leaves))
    generator = torch.Generator().manual_seed(1)
    total = sum(
        (output.double() * torch.randn(output.shape, generator=generator, dtype=torch.float64)).sum()
        for output in outputs
    )
    gradients = torch.autograd.grad(total, leaves)
    return [output.detach() for output in outputs] + list(gradients)


def check_against_eager(
    kernel: Function, eager: Sequence[Function], inputs: Sequence[Tensor], names: Sequence[str]
) -> None:
    """Holds `kernel` to the budget: every output and the gradient of every input.

    `eager` lists the same computation in different orders. One order alone may be exact by luck,
    above all where the result is a single number.
    """
    dtype = inputs[0].dtype
    actual = values_and_gradients(kernel, inputs, dtype)
    baselines = [values_and_gradients(function, inputs, dtype) for function in eager]
    exact = values_and_gradients(eager[0], inputs, torch.float64)
    assert len(names) == len(actual)
    for i, name in enumerate(names):
        assert_within_budget(name, actual[i], [b[i] for b in baselines], exact[i], dtype)
