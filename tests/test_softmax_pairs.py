"""softmax_similarity in full: labels, groups, denominators, biases, one side, y is x."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from budget import check_against_eager, values_and_gradients
from pair_cases import Vectors, classes, other_views, targets
from softmax_cases import (
    DENOMINATORS,
    GRADIENTS,
    PAIRS_AND_POSITIVES,
    STATISTICS,
    SYMMETRIC_PAIRS_AND_POSITIVES,
    eager,
    kernel,
    scalars,
    unit_rows,
)
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("pairs", "positives"), PAIRS_AND_POSITIVES)
@pytest.mark.parametrize("shape", [(60, 50, 20), (140, 200, 64), (250, 300, 64)])
def test_pairs(
    backend: str,
    shape: tuple[int, int, int],
    pairs: Callable[[int, int], Vectors],
    positives: str,
    denominator: str,
    has_biases: bool,
) -> None:
    rows, columns, width = shape
    vectors = pairs(rows, columns)

    def draw() -> list[Tensor]:
        y = unit_rows(columns, width)
        x = torch.cat([y[: rows // 4].clone(), unit_rows(rows - rows // 4, width)])
        biases = [torch.randn(rows), 4 * torch.randn(columns)] if has_biases else []
        return [x, y, *scalars(), *biases]

    names = STATISTICS + GRADIENTS[: 6 if has_biases else 4]
    baselines = [eager(vectors, denominator, order, positives) for order in (1, -1)]
    statistics = kernel(vectors, denominator, positives=positives)
    check_against_eager(statistics, baselines, [draw(), draw()], names)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("pairs", "positives"), SYMMETRIC_PAIRS_AND_POSITIVES)
@pytest.mark.parametrize("rows", [1, 20, 200, 500])
def test_where_y_is_x(
    backend: str,
    rows: int,
    pairs: Callable[[int, int], Vectors],
    positives: str,
    denominator: str,
    dtype: torch.dtype,
) -> None:
    vectors = pairs(rows, rows)
    reference, other = (eager(vectors, denominator, order, positives) for order in (1, -1))
    statistics = kernel(vectors, denominator, positives=positives)
    check_against_eager(
        lambda x, *a: statistics(x, x, *a),
        [lambda x, *a: reference(x, x, *a), lambda x, *a: other(x, x, *a)],
        [[unit_rows(rows, 24).to(dtype), *scalars(dtype)] for _ in range(4)],
        [*STATISTICS, "grad_x", "grad_scale", "grad_bias"],
    )


@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("pairs", "positives"), SYMMETRIC_PAIRS_AND_POSITIVES)
@pytest.mark.parametrize("rows", [20, 140, 400])
def test_one_bias_where_y_is_x(
    backend: str,
    rows: int,
    pairs: Callable[[int, int], Vectors],
    positives: str,
    denominator: str,
    has_columns: bool,
) -> None:
    """And rows alone, which may count (i, j) but not (j, i)."""
    vectors = pairs(rows, rows)
    kept = (0, 1, 2, 3) if has_columns else (0, 2)

    def on_both_sides(function: Callable[..., Sequence[Tensor]]) -> Callable[..., Sequence[Tensor]]:
        def run(x: Tensor, scale: Tensor, bias: Tensor, of_both: Tensor) -> Sequence[Tensor]:
            values = function(x, x, scale, bias, of_both, of_both)
            return [values[i] for i in kept]

        return run

    draws = range(max(4, 200 // rows))
    check_against_eager(
        on_both_sides(kernel(vectors, denominator, has_columns, positives)),
        [on_both_sides(eager(vectors, denominator, order, positives)) for order in (1, -1)],
        [[unit_rows(rows, 24), *scalars(), 3 * torch.randn(rows)] for _ in draws],
        [*(STATISTICS[i] for i in kept), "grad_x", "grad_scale", "grad_bias", "grad_of_both"],
    )


def test_half_the_matrix_says_what_the_whole_does(compiled: str) -> None:
    x = unit_rows(700, 40)
    for pairs in (other_views, classes):
        vectors = pairs(700, 700)
        both = {name.replace("row", "col"): v for name, v in vectors.items() if "row" in name}
        half = functional.softmax_similarity(x, x, 30.0, **vectors)
        whole = functional.softmax_similarity(x, x.clone(), 30.0, **vectors, **both)
        torch.testing.assert_close(half, whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize(("pairs", "positives"), PAIRS_AND_POSITIVES)
def test_gradients_in_float64(pairs: Callable[[int, int], Vectors], positives: str) -> None:
    leaves = [torch.randn(7, 3), torch.randn(6, 3), *scalars(scale=2.0)]
    leaves = [leaf.double().requires_grad_() for leaf in leaves]
    leaves += [torch.randn(size, dtype=torch.float64, requires_grad=True) for size in (7, 6)]
    vectors = pairs(7, 6)
    for denominator in DENOMINATORS:
        assert torch.autograd.gradcheck(kernel(vectors, denominator, positives=positives), leaves)


def test_one_side_only(backend: str) -> None:
    x, y = unit_rows(80, 16).requires_grad_(), unit_rows(300, 16).requires_grad_()
    both = functional.softmax_similarity(x, y, 20.0)
    rows = functional.softmax_similarity(x, y, 20.0, columns=False)
    assert rows.col_lse.shape == rows.col_pos.shape == (0,)
    assert torch.equal(rows.row_lse, both.row_lse)
    expected = torch.autograd.grad((both.row_lse - both.row_pos).mean(), (x, y))
    actual = torch.autograd.grad((rows.row_lse - rows.row_pos).mean(), (x, y))
    torch.testing.assert_close(actual, expected)


def test_only_the_gradients_that_are_wanted(backend: str) -> None:
    inputs = [unit_rows(90, 16), unit_rows(100, 16), *scalars(), torch.randn(90), torch.randn(100)]
    names = ("scale", "bias", "row_bias", "col_bias")

    def gradients(*wanted: int) -> tuple[Tensor, ...]:
        leaves = [v.detach().requires_grad_(i in wanted) for i, v in enumerate(inputs)]
        settings: dict[str, Any] = dict(zip(names, leaves[2:], strict=True))
        statistics = functional.softmax_similarity(leaves[0], leaves[1], **settings)
        total = sum(part.square().sum() for part in statistics)
        return torch.autograd.grad(total, [leaves[i] for i in wanted])

    everything = gradients(*range(6))
    for i in range(6):
        torch.testing.assert_close(gradients(i)[0], everything[i], rtol=1e-4, atol=1e-4)


def test_a_row_with_nothing_to_count(backend: str) -> None:
    x, y = unit_rows(30, 8).requires_grad_(), unit_rows(40, 8).requires_grad_()
    row_label = torch.arange(30) % 5
    row_label[7] = -1
    vectors = {"row_label": row_label, "col_label": torch.arange(40) % 5}
    statistics = functional.softmax_similarity(x, y, 9.0, denominator="positives", **vectors)
    assert statistics.row_lse[7] == -torch.inf
    assert statistics.row_pos[7] == 0
    grad_x, grad_y = torch.autograd.grad(statistics.row_lse.sum(), (x, y))
    assert torch.equal(grad_x[7], torch.zeros(8))
    assert grad_x.isfinite().all()
    assert grad_y.isfinite().all()


def test_infinite_biases_take_rows_and_columns_out(backend: str) -> None:
    x, y = unit_rows(250, 16).requires_grad_(), unit_rows(300, 16)
    row_bias, col_bias = torch.zeros(250), torch.randn(300)
    row_bias[3] = col_bias[5] = col_bias[200:] = -torch.inf
    no_target = torch.full((250,), -1)
    statistics = functional.softmax_similarity(
        x, y, 20.0, target=no_target, row_bias=row_bias, col_bias=col_bias
    )
    left = col_bias > -torch.inf
    expected = ((20 * x.double() @ y.double().T) + row_bias[:, None] + col_bias)[:, left]
    assert statistics.row_lse[3] == -torch.inf
    assert (statistics.col_lse[~left] == -torch.inf).all()
    rows = row_bias > -torch.inf
    torch.testing.assert_close(
        statistics.row_lse[rows], expected.logsumexp(1)[rows], rtol=1e-6, atol=1e-6
    )
    (gradient,) = torch.autograd.grad(statistics.row_lse.sum(), x)
    assert gradient.isfinite().all()
    assert torch.equal(gradient[3], torch.zeros(16))


def test_medium_precision_multiplies_bfloat16(compiled: str) -> None:
    x, y = unit_rows(90, 64), unit_rows(100, 64)
    highest = functional.softmax_similarity(x, y, 10.0).row_lse
    torch.set_float32_matmul_precision("medium")
    try:
        medium = functional.softmax_similarity(x, y, 10.0).row_lse
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(medium, highest) == (not mmcore.backends.cpu._C.has_bfloat16_products())
    torch.testing.assert_close(medium, highest, rtol=0, atol=0.02)


def test_high_precision_has_the_digits_of_two_parts(compiled: str) -> None:
    """Catches "high" that is taken for "medium", in the forward or in the backward."""
    vectors = targets(90, 100)
    statistics = kernel(vectors, "all")

    def at_high_precision(*inputs: Tensor) -> Sequence[Tensor]:
        torch.set_float32_matmul_precision("high")
        try:
            return statistics(*inputs)
        finally:
            torch.set_float32_matmul_precision("highest")

    inputs = [unit_rows(90, 64), unit_rows(100, 64), *scalars()]
    found = values_and_gradients(at_high_precision, inputs, torch.float32)
    exact = values_and_gradients(eager(vectors, "all"), inputs, torch.float64)
    for name, actual, expected in zip(STATISTICS + GRADIENTS[:4], found, exact, strict=True):
        error = (actual.double() - expected).abs().max() / expected.abs().max()
        assert error < 2**-13, name
