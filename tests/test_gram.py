"""The Gram op against plain formulas; what torch expects of it; what it never stores.

Every backend runs the same torch code, the reference's, so that no test repeats for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from budget import check_against_eager
from contracts import check_family, layouts, opcheck
from gram_cases import BATCH, every_batch, features, several
from largest import Largest
from machines import HALVES
from objective_cases import WIDTH
from torch import Tensor

from mmcore.backends.reference import gram as slabs
from mmcore.functional import gram
from mmcore.ops import gram as gram_op

pytestmark = [pytest.mark.op, pytest.mark.usefixtures("several_slabs")]


def both_grams(dtype: torch.dtype, x: Tensor, y: Tensor, centred: bool) -> Tensor:
    wide = [z.to(dtype) for z in (x, y)]
    if centred:
        wide = [z - z.mean(0) for z in wide]
    return wide[0].T @ wide[1]


@every_batch
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_gram(kind: str, centred: bool, is_symmetric: bool) -> None:
    def ours(x: Tensor, y: Tensor) -> Tensor:
        weight = torch.linspace(-1, 1, WIDTH * WIDTH, dtype=x.dtype).reshape(WIDTH, WIDTH)
        matrix = gram(x, None if is_symmetric else y, centred=centred)
        return (matrix * weight).sum() + 0 * y.sum()

    def plain(x: Tensor, y: Tensor) -> Tensor:
        weight = torch.linspace(-1, 1, WIDTH * WIDTH, dtype=x.dtype).reshape(WIDTH, WIDTH)
        matrix = both_grams(x.dtype, x, x if is_symmetric else y, centred)
        return (matrix * weight).sum() + 0 * y.sum()

    check_in_order(ours, plain, several(kind))


def check_in_order(
    ours: Callable[..., Tensor], plain: Callable[..., Tensor], inputs: list[list[Tensor]]
) -> None:
    """As `check`, of what depends on the order of the columns but not on that of the rows."""

    def reordered(*tensors: Tensor) -> Sequence[Tensor]:
        order = torch.randperm(len(tensors[0]))
        return [plain(*(t[order] for t in tensors))]

    names = ["value", *(f"gradient {i}" for i in range(len(inputs[0])))]
    check_against_eager(
        lambda *a: [ours(*a)], [lambda *a: [plain(*a)], reordered, reordered], inputs, names
    )


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("centred", [False, True])
def test_gram_of_16_bits_is_rounded_once(dtype: torch.dtype, centred: bool) -> None:
    x, y = (z.to(dtype).requires_grad_() for z in features("random"))
    found = gram(x, y[:, :9], centred=centred)
    exact = both_grams(torch.float64, x, y[:, :9], centred)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-3)
    noise = torch.randn(exact.shape)
    ours = torch.autograd.grad((found * noise).sum(), [x, y])
    wide = [z.detach().double().requires_grad_() for z in (x, y)]
    matrix = both_grams(torch.float64, wide[0], wide[1][:, :9], centred)
    expected = torch.autograd.grad((matrix * noise).sum(), wide)
    for one, other in zip(ours, expected, strict=True):
        assert one.dtype == dtype
        error = (one.double() - other).abs()
        assert (
            error <= 0.51 * torch.finfo(dtype).eps * other.abs() + 1e-5 * other.abs().max()
        ).all()


@pytest.mark.parametrize("centred", [False, True])
def test_gradients_in_float64(centred: bool) -> None:
    x = torch.randn(9, 4, dtype=torch.float64, requires_grad=True)
    y = torch.randn(9, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, y: gram(x, y, centred=centred), (x, y))
    assert torch.autograd.gradcheck(lambda x: gram(x, centred=centred), (x,))


def test_strided_inputs() -> None:
    x, y = torch.randn(2 * WIDTH, BATCH).T, torch.randn(2 * BATCH, 3 * WIDTH)[::2, ::3]
    found = gram(x, y, centred=True)
    torch.testing.assert_close(found, gram(x.contiguous(), y.contiguous(), centred=True))
    torch.testing.assert_close(found, both_grams(torch.float32, x, y, True), rtol=1e-4, atol=1e-4)


def test_only_the_gradient_that_is_wanted() -> None:
    x, y = features("random")
    gram(x.requires_grad_(), y).sum().backward()
    assert x.grad is not None
    assert y.grad is None


@pytest.mark.parametrize("layout", range(3))
@pytest.mark.parametrize("is_symmetric", [False, True])
def test_opcheck(machine: str, layout: int, is_symmetric: bool) -> None:
    x = layouts()[layout]
    y = None if is_symmetric else torch.randn(10, 6)
    parts = [True, not is_symmetric, not is_symmetric, not is_symmetric]
    inputs = slabs.GramInputs(x, y, x.mean(0).double(), None, parts)
    check_family(gram_op.family, inputs, slabs.GramWanted(True, not is_symmetric), machine)
    opcheck(torch.ops.mmcore.column_mean, x, machine)


def test_16_bit_rows_are_widened_a_slab_at_a_time() -> None:
    x, y = (z.bfloat16() for z in features("random"))
    parts = [True, True, True, True]
    with Largest(torch.float32, torch.float64) as largest:
        means = (slabs.column_mean(x), slabs.column_mean(y))
        inputs = slabs.GramInputs(x, y, *means, parts)
        sums = slabs.forward(inputs)
        slabs.backward(inputs, sums, sums, slabs.GramWanted(True, True), True)
    assert largest.size == 50 * WIDTH < x.numel()
