"""The error budget: no kernel may be further from float64 than twice what eager PyTorch is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from machines import IS_GPU
from torch import Tensor

# A GPU's exponentials are approximate: ex2.approx is off by 2^-22 of its result, 2 eps. A gradient
# meets two, that of the sum and its own. They are float32, however the inputs are rounded.
APPROXIMATION = 4 * torch.finfo(torch.float32).eps if IS_GPU else 0.0

Function = Callable[..., Sequence[Tensor]]


@dataclass
class Errors:
    """Worst errors over the draws so far, and the largest exact value."""

    kernel: float = 0.0
    eager: float = 0.0
    largest: float = 0.0

    def add(self, name: str, actual: Tensor, eager: Sequence[Tensor], exact: Tensor) -> None:
        """`eager` holds equivalent eager results; the furthest from `exact` counts."""
        assert actual.shape == exact.shape, f"{name}: shape {actual.shape}, not {exact.shape}"
        assert torch.isfinite(actual).all(), f"{name}: not finite"
        self.kernel = max(self.kernel, _distance(actual, exact))
        self.eager = max(self.eager, *(_distance(value, exact) for value in eager))
        self.largest = max(self.largest, exact.abs().max().item())


def _distance(value: Tensor, exact: Tensor) -> float:
    return (value.double() - exact).abs().max().item()


def _noise_like(output: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(output.shape, generator=generator, dtype=torch.float64, device="cpu")
    return noise.to(output.device)


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
    # Made on the CPU, so that every device combines them alike.
    generator = torch.Generator("cpu").manual_seed(1)
    total = sum((output.double() * _noise_like(output, generator)).sum() for output in outputs)
    gradients = torch.autograd.grad(total, leaves)
    return [output.detach() for output in outputs] + list(gradients)


def check_against_eager(
    kernel: Function,
    eager: Sequence[Function],
    draws: Iterable[Sequence[Tensor]],
    names: Sequence[str],
) -> None:
    """max|actual − exact| <= 2·max|eager − exact| + eps·max|exact|, exact being float64.

    On a GPU there is APPROXIMATION·max|exact| more: eager's exponentials are better there.

    Holds for every output and for the gradient of every input. `eager` lists the same computation
    in different orders and `draws` several inputs, because a result that is a single number, or a
    few, may be exact by luck: the worst of the kernel is held against the worst of eager.
    """
    errors = {name: Errors() for name in names}
    for inputs in draws:
        dtype = inputs[0].dtype
        actual = values_and_gradients(kernel, inputs, dtype)
        baselines = [values_and_gradients(function, inputs, dtype) for function in eager]
        exact = values_and_gradients(eager[0], inputs, torch.float64)
        assert len(names) == len(actual)
        for i, name in enumerate(names):
            errors[name].add(name, actual[i], [baseline[i] for baseline in baselines], exact[i])
    for name, error in errors.items():
        rounding = (torch.finfo(dtype).eps + APPROXIMATION) * error.largest
        budget = 2 * error.eager + rounding
        assert error.kernel <= budget, (
            f"{name} at {described(inputs)}: {missed(error.kernel, budget)}: "
            f"eager's error is {error.eager:.3g}, the largest value {error.largest:.3g}"
        )


def described(inputs: Sequence[Tensor]) -> str:
    """Shapes and dtypes: ``(60, 20) float32, () float32``."""
    kinds = (f"{tuple(each.shape)} {str(each.dtype).removeprefix('torch.')}" for each in inputs)
    return ", ".join(kinds)


def missed(error: float, budget: float) -> str:
    """By how much an error exceeds its budget."""
    factor = error / budget if budget else float("inf")
    return f"error {error:.3g} exceeds the budget {budget:.3g} by a factor of {factor:.3g}"
