"""The reference goes through the matrix by slabs of rows: what they add up to, what they store."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from largest import Largest
from pair_cases import PAIRS, SYMMETRIC_PAIRS, Vectors
from softmax_cases import DENOMINATORS, PAIRS_AND_POSITIVES, SYMMETRIC_PAIRS_AND_POSITIVES
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.backends.reference.slabs import LEAST_ROWS

pytestmark = pytest.mark.op
# Three slabs at a workspace of 0, the last a short one.
ROWS, COLUMNS, WIDTH = 2 * LEAST_ROWS + 7, 50, 6


def check(run: Callable[..., Any], *leaves: Tensor) -> None:
    """Statistics and gradients at a workspace of 0 are those of the whole matrix at once."""
    found = []
    for size in (0, 2**28):
        inputs = [leaf.detach().double().requires_grad_() for leaf in leaves]
        with mmcore.workspace(size), mmcore.backend("reference"):
            parts = [part.masked_fill(part == -torch.inf, 0) for part in run(*inputs)]
            weights = [torch.linspace(-1, 2, part.numel()).double() for part in parts]
            pairs = zip(parts, weights, strict=True)
            total = torch.stack([(part.flatten() * weight).sum() for part, weight in pairs]).sum()
            found.append([*parts, *torch.autograd.grad(total, inputs)])
    torch.testing.assert_close(*found, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("pairs", "positives"), PAIRS_AND_POSITIVES)
def test_softmax(pairs: Callable[..., Vectors], positives: str, denominator: str) -> None:
    def run(x: Tensor, y: Tensor, scale: Tensor, *biases: Tensor) -> Any:
        bias, row_bias, col_bias = biases
        return functional.softmax_similarity(
            x, y, scale, bias, row_bias=row_bias, col_bias=col_bias, positives=positives,
            denominator=denominator, **vectors,
        )  # fmt: skip

    vectors = pairs(ROWS, COLUMNS)
    biases = [torch.tensor(-1.0), torch.randn(ROWS), torch.randn(COLUMNS)]
    check(run, torch.randn(ROWS, WIDTH), torch.randn(COLUMNS, WIDTH), torch.tensor(3.0), *biases)


@pytest.mark.parametrize("columns", [True, False])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("pairs", "positives"), SYMMETRIC_PAIRS_AND_POSITIVES)
def test_softmax_where_y_is_x(
    pairs: Callable[..., Vectors], positives: str, denominator: str, columns: bool
) -> None:
    vectors = pairs(ROWS, ROWS)

    def run(x: Tensor, scale: Tensor, of_both: Tensor) -> Any:
        return functional.softmax_similarity(
            x, x, scale, row_bias=of_both, col_bias=of_both, positives=positives,
            denominator=denominator, columns=columns, **vectors,
        )  # fmt: skip

    check(run, torch.randn(ROWS, WIDTH), torch.tensor(3.0), torch.randn(ROWS))


@pytest.mark.parametrize("pairs", PAIRS)
def test_sigmoid(pairs: Callable[..., Vectors]) -> None:
    vectors = pairs(ROWS, COLUMNS)
    check(
        lambda *inputs: functional.sigmoid_similarity(*inputs, **vectors),
        torch.randn(ROWS, WIDTH),
        torch.randn(COLUMNS, WIDTH),
        torch.tensor(3.0),
        torch.tensor(-2.0),
    )


@pytest.mark.parametrize("pairs", SYMMETRIC_PAIRS)
def test_sigmoid_where_y_is_x(pairs: Callable[..., Vectors]) -> None:
    vectors = pairs(ROWS, ROWS)
    check(
        lambda x, *scalars: functional.sigmoid_similarity(x, x, *scalars, **vectors),
        torch.randn(ROWS, WIDTH), torch.tensor(3.0), torch.tensor(-2.0),
    )  # fmt: skip


def test_hardest_negatives_and_the_first_of_equal_ones() -> None:
    x, y = (torch.randint(-2, 3, (ROWS, 2)).float() for _ in range(2))
    found = []
    for size in (0, 2**28):
        with mmcore.workspace(size), mmcore.backend("reference"):
            found.append(functional.hardest_negatives(x, y, group=torch.arange(ROWS) // 3))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["clip_loss", "siglip_loss", "vse_loss"])
def test_the_matrix_is_never_stored(name: str, dtype: torch.dtype) -> None:
    x, y = (torch.randn(900, 8, dtype=dtype, requires_grad=True) for _ in range(2))
    settings = () if name == "vse_loss" else (2.0,)
    with mmcore.workspace(0), mmcore.backend("reference"), Largest() as largest:
        loss = getattr(functional, name)(x, y, *settings)
        torch.autograd.grad(loss, (x, y))
    assert largest.size <= LEAST_ROWS * 900
