"""What holds for every gradient of mmcore::clip and mmcore::siglip alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import nullcontext

import pytest
import torch
from fused_losses import (
    LEAN,
    ROOMY,
    Fused,
    every_loss,
    every_workspace,
    gradients,
    unit_rows,
    unwritten_is_nan,
)
from torch import Tensor

import mmcore
from mmcore import functional

pytest.importorskip("triton")

# Dtypes and shapes of a scale and of a bias.
SCALARS: list[tuple[torch.dtype, tuple[int, ...]]] = [
    (torch.float32, (1, 1)), (torch.float64, ()), (torch.bfloat16, (1,)), (torch.float16, ()),
]  # fmt: skip


@pytest.fixture(autouse=True)
def _triton() -> Iterator[None]:
    with mmcore.backend("triton"):
        yield


@every_loss
@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_wanted_gradients_do_not_depend_on_each_other(
    fused: Fused, dtype: torch.dtype, size: int
) -> None:
    """Catches a gradient that is stored for another input, or only beside another one."""

    def run(of: list[int]) -> list[Tensor | None]:
        leaves = [each.detach().requires_grad_(i in of) for i, each in enumerate(inputs)]
        fused.loss(*leaves).backward()
        return [leaf.grad for leaf in leaves]

    inputs = fused.leaves(30, dtype)
    every = list(range(len(inputs)))
    with mmcore.workspace(size):
        full = run(every)
        for wanted in ([0], [1], *([i] for i in every[2:]), [0, 1], [0, *every[2:]], every[1:]):
            for i, (whole, part) in enumerate(zip(full, run(wanted), strict=True)):
                assert whole is not None
                assert part is None if i not in wanted else torch.equal(whole, part)


@every_loss
@every_workspace
def test_scalars_of_every_kind(fused: Fused, size: int) -> None:
    """Catches a gradient in another shape or dtype than its input, and numbers for tensors."""
    x, y = unit_rows(20).bfloat16().requires_grad_(), unit_rows(20).bfloat16()
    values = list(fused.scalars)
    with mmcore.workspace(size):
        (of_numbers,) = gradients(fused.loss(x, y, *values), [x])
        for dtype, shape in SCALARS:
            leaves = [torch.full(shape, each, dtype=dtype) for each in values]
            (without,) = gradients(fused.loss(x, y, *leaves), [x])
            leaves = [each.requires_grad_() for each in leaves]
            of_x, *found = gradients(fused.loss(x, y, *leaves), [x, *leaves])
            assert [each.dtype for each in found] == len(leaves) * [dtype]
            assert [each.shape for each in found] == len(leaves) * [torch.Size(shape)]
            assert torch.equal(of_x, of_numbers)
            assert torch.equal(without, of_numbers)


def test_a_bias_of_zero_is_none() -> None:
    """Catches a missing bias that is read."""
    x, y, scale = unit_rows(20), unit_rows(20), torch.tensor([10.0], requires_grad=True)
    (without,) = gradients(functional.siglip_loss(x, y, scale), [scale])
    (zero,) = gradients(functional.siglip_loss(x, y, scale, 0.0), [scale])
    assert torch.equal(without, zero)


@every_loss
@pytest.mark.parametrize("size", [LEAN, 2**18, ROOMY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_two_backward_passes_give_the_same_bits(
    fused: Fused, dtype: torch.dtype, size: int
) -> None:
    """Catches a backward that changes what was kept, and a sum whose order changes."""
    leaves = fused.leaves(150, dtype)
    with mmcore.workspace(size):
        loss = fused.loss(*leaves)
        first, second = (torch.autograd.grad(loss, leaves, retain_graph=True) for _ in range(2))
        again = fused.gradients(leaves)
    assert all(map(torch.equal, first, second))
    assert all(map(torch.equal, first, again))


@every_loss
@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("upstream", [0.0, -3.0, 1e30, 1e-30, math.nan])
def test_upstream_gradients(fused: Fused, upstream: float, dtype: torch.dtype, size: int) -> None:
    """Catches a unit that overflows, and an upstream gradient that is taken for 1."""
    leaves = fused.leaves(20, dtype)
    with mmcore.workspace(size):
        found = fused.gradients(leaves, upstream)
    expected = gradients(fused.composed(*leaves), leaves, upstream)
    digit = 2 * torch.finfo(dtype).eps
    for one, other in zip(found, expected, strict=True):
        largest = other.nan_to_num().abs().max().item()
        torch.testing.assert_close(
            one, other, rtol=max(1e-4, digit), atol=max(1e-6, digit) * largest, equal_nan=True
        )


@every_loss
@every_workspace
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_nan_and_inf_reach_the_loss(
    fused: Fused, poison: float, dtype: torch.dtype, size: int
) -> None:
    """Catches a mask that hides what is not a number, and a row of G that does not hand it on."""
    for at in range(2 + len(fused.scalars)):
        inputs = [each.detach() for each in fused.leaves(20, dtype)]
        inputs[at].view(-1)[0] = poison
        leaves = [each.requires_grad_() for each in inputs]
        with mmcore.workspace(size):
            loss = fused.loss(*leaves)
            found = gradients(loss, leaves)
        assert not loss.isfinite()
        if poison != poison:
            assert found[2].isnan()
            assert found[0][0].isnan().all()


def clip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return functional.clip_loss(x, y, scale)


def siglip(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return functional.siglip_loss(x, y, scale, -scale)


def siglip_with_itself(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return functional.siglip_loss(x, x, scale, -scale) + y.float().sum()


def siglip_by_label(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    ids = torch.arange(len(x)) // 2
    return functional.siglip_loss(x, y, scale, -scale, row_label=ids, col_label=ids)


def targets(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    return sum(each.sum() for each in functional.softmax_similarity(x, y, scale))


def targets_of_several_rows(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    target = torch.arange(len(x)) // 3
    found = functional.softmax_similarity(x, y, scale, target=target)
    return sum(torch.where(each.isfinite(), each, 0.0).sum() for each in found)


def labels(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    ids = torch.arange(len(x)) // 2
    found = functional.softmax_similarity(x, y, scale, row_label=ids, col_label=ids)
    return sum(each.sum() for each in found)


def itself(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    """Half of the matrix is enough."""
    ids = torch.arange(len(x))
    found = functional.softmax_similarity(
        x, x, scale, row_label=ids // 2, row_group=ids, columns=False
    )
    return found.row_lse.sum() - found.row_pos.sum() + y.float().sum()


def biases(x: Tensor, y: Tensor, scale: Tensor) -> Tensor:
    bias = scale * torch.linspace(-1, 1, len(x))
    found = functional.softmax_similarity(x, y, scale, row_bias=bias, col_bias=-bias)
    return sum(each.sum() for each in found)


LOSSES = [
    clip, siglip, siglip_with_itself, siglip_by_label, targets, targets_of_several_rows, labels,
    itself, biases,
]  # fmt: skip


@pytest.mark.op
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("size", [LEAN, 2**18, ROOMY])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("norm", [1.0, 6.0])
def test_unwritten_memory_does_not_matter(
    loss: Callable[..., Tensor], size: int, dtype: torch.dtype, norm: float
) -> None:
    """Catches a sum, a term or a counter that no program stores: nothing clears them before."""
    inputs = [*((norm * unit_rows(300)).to(dtype) for _ in range(2)), torch.tensor(10.0)]
    found = []
    for memory in (nullcontext, unwritten_is_nan):
        leaves = [each.detach().requires_grad_() for each in inputs]
        with mmcore.workspace(size), memory():
            value = loss(*leaves)
            found.append([value, *gradients(value, leaves)])
    assert all(each.isfinite().all() for each in found[0])
    assert all(map(torch.equal, *found))
