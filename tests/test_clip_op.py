"""mmcore::clip, the loss of CLIP in one op: values and every gradient against float64.

On hard inputs. What it shares with mmcore::siglip: test_fused_losses.py, test_fused_steps.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager, values_and_gradients
from fused_losses import (
    FUSED,
    LEAN,
    ROOMY,
    SOME,
    Draw,
    close,
    converged,
    duplicates,
    far_below_the_bound,
    numbers,
    strided,
    unnormalised,
    zero_rows,
)
from machines import DTYPES, HALVES
from torch import Tensor

import mmcore
from mmcore import functional

pytest.importorskip("triton")

LOSS = ["loss", "grad_x", "grad_y", "grad_scale"]
CLIP = FUSED["clip"]
every_workspace = pytest.mark.parametrize("size", [LEAN, SOME, ROOMY])


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


def fused(*inputs: Tensor) -> Sequence[Tensor]:
    return [functional.clip_loss(*inputs)]


def composed(x: Tensor, y: Tensor, scale: Tensor) -> Sequence[Tensor]:
    """Of the statistics."""
    found = functional.softmax_similarity(x, y, scale)
    return [((found.row_lse + found.col_lse) / 2 - found.row_pos).mean().float()]


def eager(x: Tensor, y: Tensor, scale: Tensor) -> Sequence[Tensor]:
    """As open_clip writes it."""
    logits, target = scale * (x @ y.T), torch.arange(len(x))
    return [(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2]


def eager_in_reverse(x: Tensor, y: Tensor, scale: Tensor) -> Sequence[Tensor]:
    return eager(x.flip(0, 1), y.flip(0, 1), scale)


def drawn(kind: Draw, rows: int, scale: float, dtype: torch.dtype) -> list[Tensor]:
    """In the dtype; strides stay."""
    return [
        each if each.dtype == dtype else each.to(dtype) for each in (*kind(rows), *numbers(scale))
    ]


KINDS = [unnormalised, duplicates, converged, zero_rows, strided, far_below_the_bound]


@pytest.mark.op
@every_workspace
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 127, 129, 130, 300])
@pytest.mark.parametrize("scale", [0.0, 1e-3, 10.0, 100.0])
def test_values_and_gradients(
    rows: int, kind: Draw, scale: float, dtype: torch.dtype, size: int
) -> None:
    """Catches a wrong entry of G, a factor that is missing, a tail that is read or not stored."""
    draws = [drawn(kind, rows, scale, dtype) for _ in range(3)]
    with mmcore.workspace(size):
        check_against_eager(fused, [eager, eager_in_reverse], draws, LOSS)


@pytest.mark.op
@every_workspace
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_the_composition_is_the_same(
    kind: Draw, scale: float, dtype: torch.dtype, size: int
) -> None:
    """Catches a term of G that the two ways compute by different formulas."""
    inputs = drawn(kind, 140, scale, dtype)
    with mmcore.workspace(size):
        found, expected = (values_and_gradients(way, inputs, dtype) for way in (fused, composed))
    # 16-bit gradients differ by a digit where the two ways round a tie apart.
    close(found, expected, max(1e-5, 2 * torch.finfo(dtype).eps))


@every_workspace
@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_gradients_keep_their_digits(dtype: torch.dtype, size: int) -> None:
    """Catches a unit of float16 that is applied twice or not at all, and a second rounding."""
    leaves = CLIP.leaves(140, dtype)
    wide = [each.detach().double().requires_grad_() for each in leaves]
    expected = torch.autograd.grad(2.0**10 * CLIP.composed(*wide), wide)
    with mmcore.workspace(size):
        found = CLIP.gradients(leaves, 2.0**10)
    for one, exact in zip(found, expected, strict=True):
        limit = 2**-8 if dtype == torch.bfloat16 else 2**-11
        assert (one.double() - exact).norm() <= limit * exact.norm()


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_batch_that_has_converged(dtype: torch.dtype) -> None:
    """Catches lse − s and E·R − 1 that are rounded before they are subtracted: both are 1e-7."""
    x, y = (torch.eye(32).to(dtype) for _ in range(2))
    leaves = [x.requires_grad_(), y, torch.tensor(20.0, requires_grad=True)]
    exact = eager(*(each.detach().double() for each in leaves))[0]
    loss = functional.clip_loss(*leaves)
    torch.testing.assert_close(loss.double(), exact, rtol=1e-6, atol=0)
    assert exact < 1e-7
    # The diagonal of G, times the scale; as many digits as kept exponentials have.
    of_x, of_scale = torch.autograd.grad(2.0**20 * loss, (leaves[0], leaves[2]))
    digit = max(1e-4, torch.finfo(dtype).eps)
    torch.testing.assert_close(of_scale.double(), -(2.0**20) * exact, rtol=digit, atol=0)
    expected = torch.full((32,), -(2.0**20) * exact * 20 / 32, dtype=torch.float64)
    torch.testing.assert_close(of_x.diagonal().double(), expected, rtol=digit, atol=0)


@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("side", [0, 1])
def test_one_row_opposes_all_columns(side: int, dtype: torch.dtype, size: int) -> None:
    """Catches a flag that only the first rows of a block have: all others are trusted."""
    draws = []
    for at in (3, 100, 129):
        sides = [F.normalize(1 + 0.7 * torch.randn(130, 40), dim=1) for _ in range(2)]
        sides[side][at] *= -1
        draws.append([each.to(dtype) for each in (*sides, *numbers(80.0))])
    with mmcore.workspace(size):
        check_against_eager(fused, [eager, eager_in_reverse], draws, LOSS)


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_pair(dtype: torch.dtype) -> None:
    """Catches a loss of nothing to tell apart that is not 0, with gradients that are not 0."""
    inputs = drawn(unnormalised, 1, 7.0, dtype)
    assert all(each.count_nonzero() == 0 for each in values_and_gradients(fused, inputs, dtype))
