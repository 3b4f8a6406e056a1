"""The tiles of the matrix unit: their bits, and the numbers that they must leave to vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator

import pytest
import torch
import torch.nn.functional as F
from machines import MATRIX_UNIT
from softmax_cases import unit_rows
from torch import Tensor

from mmcore import functional
from mmcore.backends import cpu

pytestmark = pytest.mark.skipif(cpu._C is None, reason="of the compiled module")

Draw = Callable[[int, int], Tensor]

SPECIAL = [0.0, -0.0, torch.inf, -torch.inf, torch.nan, 3.38e38, -3.38e38, 1e-40, -1e-39, 1.2e-38]


@pytest.fixture
def select() -> Iterator[None]:
    """Puts the instruction set back after a test that selects several."""
    before = cpu._C.instruction_set()
    yield
    cpu._C.select_instruction_set(before)


def on(instruction_set: str) -> None:
    """Selects it. Bits can be compared with those of the processor only where it has the unit."""
    if not cpu._C.select_instruction_set(instruction_set):
        pytest.skip(f"{instruction_set} was not built or this processor lacks it")


def products(x: Tensor, y: Tensor, precision: str = "highest") -> Tensor:
    """x·yᵀ, as a projection multiplies it."""
    torch.set_float32_matmul_precision(precision)
    try:
        return functional.project(x, y, normalize=False)
    finally:
        torch.set_float32_matmul_precision("highest")


def with_special_numbers(rows: int, width: int) -> Tensor:
    """Magnitudes of the whole range, and in some rows numbers that are not finite or denormal."""
    size = (rows, width)
    numbers = torch.randn(size) * torch.randint(-60, 61, size).float().exp2()
    chosen = torch.randint(0, len(SPECIAL), size)
    is_special = (torch.rand(size) < 0.02) & (torch.arange(rows) % 3 == 0)[:, None]
    return torch.where(is_special, torch.tensor(SPECIAL)[chosen], numbers)


@pytest.mark.parametrize("numbers", [unit_rows, with_special_numbers])
def test_the_emulation_has_the_bits_of_the_processor(select: None, numbers: Draw) -> None:
    """Catches another order of its sums, or other rules for NaN, denormals and rounding."""
    x, y = numbers(75, 200), numbers(70, 200)
    found = []
    for name in ("amx", "emulated_amx"):
        on(name)
        found.append(products(x, y, "medium"))
    hardware, emulated = found
    is_nan = hardware.isnan()
    assert torch.equal(is_nan, emulated.isnan())
    assert torch.equal(hardware[~is_nan].view(torch.int32), emulated[~is_nan].view(torch.int32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_an_objective_has_the_same_bits_by_emulation(select: None, dtype: torch.dtype) -> None:
    """Catches an operand that only one of both reads in the right layout."""
    x, y = unit_rows(300, 70).to(dtype), unit_rows(300, 70).to(dtype)
    found = []
    for name in ("amx", "emulated_amx"):
        on(name)
        leaves = [x.clone().requires_grad_(), y.clone().requires_grad_()]
        loss = functional.clip_loss(*leaves, 100.0)
        found.append([loss.detach(), *torch.autograd.grad(loss, leaves)])
    for hardware, emulated in zip(*found, strict=True):
        assert torch.equal(hardware, emulated)


@pytest.mark.parametrize("value", [torch.inf, torch.nan, 3.4e38, 1e31])
def test_a_number_that_does_not_split_is_multiplied_by_vectors(select: None, value: float) -> None:
    """Catches inf − inf in the lower parts, and parts that were rounded up to infinity."""
    x, y = unit_rows(40, 100), unit_rows(35, 100)
    x[3, 7] = value
    on(MATRIX_UNIT)
    by_tiles = products(x, y)
    on("avx2")
    torch.testing.assert_close(by_tiles, products(x, y), rtol=0, atol=0, equal_nan=True)


def test_tiny_numbers_keep_their_digits(select: None) -> None:
    """Catches parts below 2^-126, which the matrix unit takes for 0."""
    on(MATRIX_UNIT)
    x, y = unit_rows(40, 100), unit_rows(35, 100)
    tiny = products(x * 2.0**-90, y * 2.0**-20)
    torch.testing.assert_close(tiny * 2.0**110, products(x, y), rtol=0, atol=1e-6)


@pytest.mark.parametrize("exponent", [-80, 90])
def test_small_and_large_upstream_gradients_keep_their_digits(select: None, exponent: int) -> None:
    """Catches G whose parts overflow, or are denormal."""
    on(MATRIX_UNIT)
    x, y = unit_rows(40, 30).requires_grad_(), unit_rows(40, 30)
    (expected,) = torch.autograd.grad(functional.clip_loss(x, y, 10.0), x)
    weight = 2.0**exponent
    (found,) = torch.autograd.grad(functional.clip_loss(x, y, 10.0) * weight, x)
    torch.testing.assert_close(found / weight, expected, rtol=0, atol=1e-7)


def test_gradients_of_a_converged_batch_keep_their_digits(select: None) -> None:
    """Catches parts of G that the matrix unit takes for 0: nearly every pair is told apart."""
    on(MATRIX_UNIT)
    x = unit_rows(300, 512)
    y = F.normalize(x + 0.002 * torch.randn(300, 512), dim=1)

    def gradient(dtype: torch.dtype) -> Tensor:
        leaf = x.to(dtype).requires_grad_()
        (found,) = torch.autograd.grad(functional.clip_loss(leaf, y.to(dtype), 95.0), leaf)
        return found

    exact = gradient(torch.float64)
    assert exact.abs().max() < 1e-30
    torch.testing.assert_close(
        gradient(torch.float32).double(), exact, rtol=0, atol=1e-5 * exact.abs().max().item()
    )


def near_each_other(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(width) + 0.05 * torch.randn(rows, width), dim=1)


def heavy_tailed(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width) * (3 * torch.randn(rows, width)).exp(), dim=1)


@pytest.mark.parametrize("numbers", [unit_rows, near_each_other, heavy_tailed])
def test_float32_by_parts_is_as_exact_as_eager(select: None, numbers: Draw) -> None:
    """Catches a product of parts that is left out, and large ones that round small ones away."""
    on(MATRIX_UNIT)
    x, y = numbers(128, 512), numbers(96, 512)
    exact = x.double() @ y.double().T
    error, eager = (products(x, y) - exact).abs(), (x @ y.T - exact).abs()
    assert error.max() <= eager.max()
    assert error.square().mean() <= eager.square().mean()


def test_float16_by_parts_is_exact_but_for_the_sum(select: None) -> None:
    """Catches a float16 number that is rounded to one bfloat16 number, or its fourth product."""
    on(MATRIX_UNIT)
    x, y = unit_rows(64, 512).half(), unit_rows(64, 512).half()
    found = functional.softmax_similarity(x, y, 30.0, target=torch.arange(64)).row_lse
    exact = (30 * x.double() @ y.double().T).logsumexp(1)
    torch.testing.assert_close(found, exact, rtol=0, atol=1e-6)


def test_high_precision_has_the_digits_of_two_parts(select: None) -> None:
    """Catches "high" that is computed as one of the others."""
    on(MATRIX_UNIT)
    x, y = unit_rows(128, 512), unit_rows(96, 512)
    exact = x.double() @ y.double().T
    errors = {
        name: (products(x, y, name) - exact).abs().max() for name in ("highest", "high", "medium")
    }
    assert errors["highest"] < errors["high"] / 4 < errors["medium"] / 100


def test_denormal_numbers_are_flushed_in_kernels_only(select: None) -> None:
    """Catches a kernel that leaves the thread of its caller flushing."""
    on(MATRIX_UNIT)
    products(unit_rows(40, 30), unit_rows(40, 30))
    assert (torch.full((64,), 1e-38) * 0.1).min() > 0


def test_the_error_says_why_there_is_no_matrix_unit() -> None:
    """Catches an error without the reason, and a unit that is there and not chosen."""
    environment = {**os.environ, "MMCORE_CPU_ISA": "amx"}
    done = subprocess.run(
        [sys.executable, "-c", "import mmcore; print(mmcore.backends.cpu.instruction_sets()[0])"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    obstacle = cpu.obstacle_to_matrix_unit()
    if obstacle is None:
        assert done.stdout.strip() == "amx"
    else:
        assert "MMCORE_CPU_ISA" in done.stderr
        assert obstacle in done.stderr
