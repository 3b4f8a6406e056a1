"""mmcore::siglip, the loss of SigLIP in one op: values and every gradient against float64.

On hard inputs, and for every upstream gradient. What surrounds a training step:
test_siglip_step.py; how many kernels it has: test_siglip_launches.py.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from machines import HALVES
from siglip_cases import composed, every_workspace, fused, gradients, leaves_of, scalars, unit_rows
from torch import Tensor

import mmcore
from mmcore import functional

pytest.importorskip("triton")

LOSS = ["loss", "grad_x", "grad_y", "grad_scale", "grad_bias"]


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


def eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """As open_clip writes it."""
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return [-F.logsigmoid(signs * (scale * (x @ y.T) + bias)).sum() / len(x)]


def eager_in_reverse(x: Tensor, y: Tensor, *others: Tensor) -> Sequence[Tensor]:
    return eager(x.flip(0, 1), y.flip(0, 1), *others)


def pairs_at_cosine(rows: int) -> list[Tensor]:
    """Near convergence, where positives leave σ a small rest of 1."""
    x = unit_rows(rows, 40)
    return [x, F.normalize(x + 0.05 * unit_rows(rows, 40), dim=1)]


def duplicates(rows: int) -> list[Tensor]:
    return [unit_rows(rows, 40)[torch.arange(rows) // copies] for copies in (3, 2)]


def zero_rows(rows: int) -> list[Tensor]:
    x, y = unit_rows(rows, 40), unit_rows(rows, 40)
    x[::3], y[1::4] = 0, 0
    return [x, y]


def strided(rows: int) -> list[Tensor]:
    return [torch.randn(40, rows).T, torch.randn(3 * rows, 90)[::3, 5:45]]


def unnormalised(rows: int) -> list[Tensor]:
    return [torch.randn(rows, 40), 3 * torch.randn(rows, 40)]


@pytest.mark.op
@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [pairs_at_cosine, duplicates, zero_rows, strided, unnormalised])
@pytest.mark.parametrize("rows", [1, 7, 130, 257])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -50.0)])
def test_values_and_gradients(
    rows: int, kind: Callable[[int], list[Tensor]], scale: float, bias: float,
    dtype: torch.dtype, size: int,
) -> None:  # fmt: skip
    """Catches a wrong entry of G, a factor that is missing, a tail that is read or not stored."""

    def draw() -> list[Tensor]:
        sides = (z if z.dtype == dtype else z.to(dtype) for z in kind(rows))
        return [*sides, *(each.to(dtype) for each in scalars(scale, bias))]

    draws = [draw() for _ in range(20 if rows < 100 else 4)]
    with mmcore.workspace(size):
        check_against_eager(fused, [eager, eager_in_reverse], draws, LOSS)


@every_workspace
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_gradients_keep_their_digits(dtype: torch.dtype, size: int) -> None:
    """Catches a unit of float16 that is applied twice or not at all, and a second rounding."""
    leaves = leaves_of(140, dtype)
    wide = [each.detach().double().requires_grad_() for each in leaves]
    with mmcore.workspace(size):
        found = gradients(fused(*leaves)[0], leaves, 2.0**10)
    for one, exact in zip(found, gradients(composed(*wide), wide, 2.0**10), strict=True):
        limit = 2**-8 if dtype == torch.bfloat16 else 2**-11
        assert (one.double() - exact).norm() <= limit * exact.norm()


@every_workspace
@pytest.mark.parametrize("wanted", [[0], [1], [2], [3], [0, 2], [1, 3]])
def test_wanted_gradients_do_not_depend_on_each_other(wanted: list[int], size: int) -> None:
    """Catches a gradient that is stored for another input, or only beside another one."""

    def run(of: list[int]) -> list[Tensor | None]:
        leaves = [each.detach().requires_grad_(i in of) for i, each in enumerate(inputs)]
        fused(*leaves)[0].backward()
        return [leaf.grad for leaf in leaves]

    inputs = leaves_of(30)
    with mmcore.workspace(size):
        for i, (full, part) in enumerate(zip(run([0, 1, 2, 3]), run(wanted), strict=True)):
            assert full is not None
            assert part is None if i not in wanted else torch.equal(full, part)


@every_workspace
def test_scalars_of_every_kind(size: int) -> None:
    """Catches a gradient in another shape or dtype than its input, and numbers for tensors."""
    x, y = unit_rows(20).bfloat16().requires_grad_(), unit_rows(20).bfloat16()
    scale, bias = torch.tensor([10.0], requires_grad=True), torch.tensor(-5.0).half()
    bias.requires_grad_()
    with mmcore.workspace(size):
        loss = functional.siglip_loss(x, y, scale, bias)
        found = gradients(loss, [x, scale, bias])
        (of_number,) = gradients(functional.siglip_loss(x, y, 10.0, -5.0), [x])
        (without,) = gradients(functional.siglip_loss(x, y, scale), [scale])
        (zero,) = gradients(functional.siglip_loss(x, y, scale, 0.0), [scale])
    assert [each.dtype for each in found] == [torch.bfloat16, torch.float32, torch.float16]
    assert [each.shape for each in found] == [x.shape, scale.shape, bias.shape]
    assert torch.equal(found[0], of_number)
    assert torch.equal(without, zero)


@every_workspace
def test_two_backward_passes_give_the_same_bits(size: int) -> None:
    """Catches a backward that scales what was kept in place."""
    leaves = leaves_of(150)
    with mmcore.workspace(size):
        loss = fused(*leaves)[0]
        first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
        again = gradients(fused(*leaves)[0], leaves)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, again))


@every_workspace
@pytest.mark.parametrize("upstream", [0.0, -3.0, 1e30, math.nan])
def test_upstream_gradients(upstream: float, size: int) -> None:
    """Catches a unit that overflows, and an upstream gradient that is taken for 1."""
    leaves = leaves_of()
    with mmcore.workspace(size):
        found = gradients(fused(*leaves)[0], leaves, upstream)
    expected = gradients(composed(*leaves), leaves, upstream)
    for one, other in zip(found, expected, strict=True):
        largest = other.nan_to_num().abs().max().item()
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6 * largest, equal_nan=True)


@every_workspace
@pytest.mark.parametrize("poison", [math.nan, math.inf])
@pytest.mark.parametrize("where", ["x", "y", "scale", "bias"])
def test_nan_and_inf_reach_the_loss(where: str, poison: float, size: int) -> None:
    """Catches a mask that hides what is not a number, and a row of G that does not hand it on."""
    inputs = [each.detach().clone() for each in leaves_of()]
    at = ["x", "y", "scale", "bias"].index(where)
    inputs[at].view(-1)[0] = poison
    leaves = [each.requires_grad_() for each in inputs]
    with mmcore.workspace(size):
        loss = fused(*leaves)[0]
        found = gradients(loss, leaves)
    assert not loss.isfinite()
    if poison != poison:
        assert found[2].isnan()
        assert found[0][0].isnan().all()


def test_a_loss_that_has_converged_keeps_its_digits() -> None:
    """Catches total − positive, a difference of 50 and 50, for a loss of 1e-22."""
    inputs = [torch.ones(1, 1), torch.ones(1, 1), *scalars(100.0, -50.0)]
    expected = F.softplus(torch.tensor(-50.0).double()).float()
    torch.testing.assert_close(fused(*inputs)[0], expected, rtol=1e-6, atol=0)
