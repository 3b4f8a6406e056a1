"""l2_normalize and project in 16 bits: rounding, products of bfloat16, autocast, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from machines import DEVICE, HALVES
from test_projection import (
    NAMES,
    eager_projection,
    in_reverse,
    kernel_projection,
    projection_inputs,
)
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op

SHAPES = [(1, 1, 1), (7, 64, 100), (193, 131, 50), (50, 300, 512)]


def every_number(dtype: torch.dtype) -> Tensor:
    """(65536, 1): every number of a 16-bit dtype, infinities and NaN among them."""
    return torch.arange(-(2**15), 2**15, dtype=torch.int16).view(dtype)[:, None]


@pytest.mark.parametrize("dtype", HALVES)
def test_every_number_passes_unchanged(backend: str, dtype: torch.dtype) -> None:
    x = every_number(dtype)
    if dtype == torch.bfloat16:  # products of bfloat16 flush subnormal numbers
        x = x[~(x.float().abs() < 2.0**-126)][:, None]
    output = functional.project(x, torch.ones(1, 1, dtype=dtype), normalize=False)
    torch.testing.assert_close(output, x, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("factor", [0.3, 1.7, -(2.0**-9), 3e-3, 700.0])
def test_results_are_rounded_to_nearest_even(
    backend: str, dtype: torch.dtype, factor: float
) -> None:
    x, weight = every_number(dtype), torch.tensor([[factor]]).to(dtype)
    if dtype == torch.bfloat16:
        x = x[~(x.float().abs() < 2.0**-100)][:, None]
    expected = (x.float() * weight.float()).to(dtype)
    output = functional.project(x, weight, normalize=False)
    torch.testing.assert_close(output, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("norm", [None, "layer", "rms"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", HALVES)
def test_project(
    backend: str,
    dtype: torch.dtype,
    shape: tuple[int, int, int],
    norm: str | None,
    normalize: bool,
) -> None:
    draws = [[t.to(dtype) for t in projection_inputs(*shape, norm)] for _ in range(3)]
    names = NAMES[: 1 + len(draws[0])]
    kernel, eager = kernel_projection(norm, normalize), eager_projection(norm, normalize)
    check_against_eager(kernel, [eager, in_reverse(eager)], draws, names)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("width", [1, 33, 512])
def test_l2_normalize(backend: str, dtype: torch.dtype, width: int) -> None:
    draws = [[(torch.randn(70, width) * 10).to(dtype)] for _ in range(4)]
    if dtype == torch.bfloat16:
        draws[0][0][1] = 0  # its gradient is divided by eps, beyond any float16
    check_against_eager(
        lambda x: [functional.l2_normalize(x)],
        [lambda x: [F.normalize(x, dim=-1)], lambda x: [F.normalize(x.flip(1), dim=1).flip(1)]],
        draws,
        ["y", "grad_x"],
    )


@pytest.mark.parametrize("dtype", HALVES)
def test_strided_and_transposed_inputs(backend: str, dtype: torch.dtype) -> None:
    x = torch.randn(40, 60).to(dtype).T
    weight, bias = torch.randn(200, 80).to(dtype)[::5, ::2], torch.randn(40).to(dtype)
    kernel, eager = kernel_projection("layer", True), eager_projection("layer", True)
    check_against_eager(kernel, [eager, in_reverse(eager)], [[x, weight, bias]], NAMES[:4])


def test_autocast_multiplies_in_its_dtype_and_norms_in_float32(backend: str) -> None:
    def kernel(*inputs: Tensor) -> list[Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=inputs[0].dtype == torch.float32):
            output = kernel_projection("layer", True)(*inputs)[0]
        assert output.dtype == (
            torch.bfloat16 if inputs[0].dtype == torch.float32 else torch.double
        )
        return [output]

    def eager(*inputs: Tensor) -> list[Tensor]:
        with torch.autocast(DEVICE, torch.bfloat16, enabled=inputs[0].dtype == torch.float32):
            return list(eager_projection("layer", True)(*inputs))

    draws = [projection_inputs(90, 70, 40, "layer") for _ in range(3)]
    check_against_eager(kernel, [eager], draws, NAMES)


def test_medium_precision_multiplies_bfloat16(compiled: str) -> None:
    x, weight, bias = projection_inputs(90, 64, 33, None)
    highest = functional.project(x, weight, bias)
    torch.set_float32_matmul_precision("medium")
    try:
        medium = functional.project(x, weight, bias)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(medium, highest) == (not mmcore.backends.cpu._C.has_bfloat16_products())
    torch.testing.assert_close(medium, highest, rtol=0, atol=0.01)


@pytest.mark.parametrize("wanted", [[i] for i in range(5)] + [[1, 2], [0, 4], [1, 3]])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wanted_gradients_do_not_depend_on_each_other(
    backend: str, dtype: torch.dtype, wanted: list[int]
) -> None:
    def gradients(of: list[int]) -> list[Tensor | None]:
        leaves = [t.detach().requires_grad_(i in of) for i, t in enumerate(inputs)]
        output = kernel_projection("layer", True)(*leaves)[0]
        (output * torch.linspace(-1, 1, 30, dtype=dtype)).sum().backward()
        return [leaf.grad for leaf in leaves]

    inputs = [t.to(dtype) for t in projection_inputs(250, 70, 30, "layer")]
    everything, some = gradients(list(range(5))), gradients(wanted)
    for i, (full, part) in enumerate(zip(everything, some, strict=True)):
        assert full is not None
        assert part is None if i not in wanted else torch.equal(full, part)
