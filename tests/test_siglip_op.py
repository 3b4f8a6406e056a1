"""mmcore::siglip, the loss of SigLIP in one op: values and every gradient against float64.

On hard inputs. What it shares with mmcore::clip: test_fused_losses.py, test_fused_steps.py; how
many kernels it has: test_siglip_launches.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from fused_losses import (
    FUSED,
    Draw,
    converged,
    duplicates,
    every_workspace,
    gradients,
    numbers,
    strided,
    unnormalised,
    zero_rows,
)
from machines import HALVES
from torch import Tensor

import mmcore
from mmcore import functional

pytest.importorskip("triton")

LOSS = ["loss", "grad_x", "grad_y", "grad_scale", "grad_bias"]
SIGLIP = FUSED["siglip"]


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


def fused(*inputs: Tensor) -> Sequence[Tensor]:
    return [functional.siglip_loss(*inputs)]


def eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor) -> Sequence[Tensor]:
    """As open_clip writes it."""
    signs = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return [-F.logsigmoid(signs * (scale * (x @ y.T) + bias)).sum() / len(x)]


def eager_in_reverse(x: Tensor, y: Tensor, *others: Tensor) -> Sequence[Tensor]:
    return eager(x.flip(0, 1), y.flip(0, 1), *others)


@pytest.mark.op
@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [converged, duplicates, zero_rows, strided, unnormalised])
@pytest.mark.parametrize("rows", [1, 7, 130, 257])
@pytest.mark.parametrize(("scale", "bias"), [(1.0, 0.0), (10.0, -10.0), (100.0, -50.0)])
def test_values_and_gradients(
    rows: int, kind: Draw, scale: float, bias: float,
    dtype: torch.dtype, size: int,
) -> None:  # fmt: skip
    """Catches a wrong entry of G, a factor that is missing, a tail that is read or not stored."""

    def draw() -> list[Tensor]:
        sides = (z if z.dtype == dtype else z.to(dtype) for z in kind(rows))
        return [*sides, *(each.to(dtype) for each in numbers(scale, bias))]

    draws = [draw() for _ in range(20 if rows < 100 else 4)]
    with mmcore.workspace(size):
        check_against_eager(fused, [eager, eager_in_reverse], draws, LOSS)


@every_workspace
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_gradients_keep_their_digits(dtype: torch.dtype, size: int) -> None:
    """Catches a unit of float16 that is applied twice or not at all, and a second rounding."""
    leaves = SIGLIP.leaves(140, dtype)
    wide = [each.detach().double().requires_grad_() for each in leaves]
    with mmcore.workspace(size):
        found = SIGLIP.gradients(leaves, 2.0**10)
    for one, exact in zip(found, gradients(SIGLIP.composed(*wide), wide, 2.0**10), strict=True):
        limit = 2**-8 if dtype == torch.bfloat16 else 2**-11
        assert (one.double() - exact).norm() <= limit * exact.norm()


def test_a_loss_that_has_converged_keeps_its_digits() -> None:
    """Catches total − positive, a difference of 50 and 50, for a loss of 1e-22."""
    inputs = [torch.ones(1, 1), torch.ones(1, 1), *numbers(100.0, -50.0)]
    expected = F.softplus(torch.tensor(-50.0).double()).float()
    torch.testing.assert_close(fused(*inputs)[0], expected, rtol=1e-6, atol=0)
