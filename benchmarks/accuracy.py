"""Error of values and gradients against the eager rival in float64.

Every error is the largest absolute difference over the largest absolute value of the float64
result, the worst of several seeds. The inputs are rounded to the case's dtype first, and the same
rounded numbers go to float64: only the arithmetic is judged, not the rounding of the inputs.
"""

from collections.abc import Mapping

import torch

from cases import Case
from inputs import DEFAULT_DEVICE, MODES
from measure import Function, call
from providers import eager_function, eager_provider

Errors = dict[str, float | None]

SEEDS = (11, 12, 13)
FLOAT64_BYTES = 8


def reference_estimate_bytes(case: Case) -> int:
    """A rough peak of the float64 yardstick."""
    return int(eager_provider(case).matrices * case.rows**2 * FLOAT64_BYTES)


def relative_error(result: torch.Tensor, reference: torch.Tensor) -> float | None:
    """max |result − reference| / max |reference|; None where float64 itself has no digits left."""
    largest = float(reference.abs().max())
    if largest == 0:
        return None
    return float((result.double() - reference).abs().max()) / largest


def measure_errors(
    functions: Mapping[str, Function], case: Case, device: str = DEFAULT_DEVICE
) -> dict[str, Errors]:
    """For each provider: error_value, and error_grad_<input> for every input."""
    worst: dict[str, Errors] = {name: {} for name in functions}
    for seed in SEEDS:
        inputs = case.make_inputs(seed, device)
        output_gradient = case.make_output_gradient(seed, device)
        reference = reference_results(case, inputs, output_gradient)
        for name, function in functions.items():
            results = named_results(function, inputs, output_gradient)
            for quantity, result in results.items():
                known = (worst[name].get(quantity), relative_error(result, reference[quantity]))
                errors = (error for error in known if error is not None)
                worst[name][quantity] = max(errors, default=None)
    return worst


def named_results(
    function: Function,
    inputs: Mapping[str, torch.Tensor],
    output_gradient: torch.Tensor | None,
) -> dict[str, torch.Tensor]:
    """The value and the gradients under the names of their errors."""
    value, gradients = call(function, inputs, output_gradient, MODES[1])
    named = {f"error_grad_{name}": each for name, each in zip(inputs, gradients, strict=True)}
    return {"error_value": value.detach(), **named}


def reference_results(
    case: Case, inputs: Mapping[str, torch.Tensor], output_gradient: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """The same call in float64 on the same numbers."""
    doubled = {name: each.detach().double().requires_grad_() for name, each in inputs.items()}
    gradient = None if output_gradient is None else output_gradient.double()
    return named_results(eager_function(case), doubled, gradient)
