"""softmax_similarity against eager PyTorch and float64, on inputs made hard on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from machines import HALVES, IS_GPU, SMALL_DRAWS
from torch import Tensor

from mmcore import backends, functional

pytestmark = pytest.mark.op

NAMES = ["row_lse", "col_lse", "row_pos", "col_pos", "grad_x", "grad_y", "grad_scale", "grad_bias"]
SIZES = [1, 7, 100, 1000, 1025]
WIDTHS = [1, 64, 100, 512, 1000]


def eager(x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, target: Tensor) -> Sequence[Tensor]:
    logits = scale * (x @ y.T) + bias
    has_positive, column = target >= 0, target.clamp_min(0)
    row_pos = torch.where(has_positive, logits.gather(1, column[:, None])[:, 0], 0)
    col_pos = logits.new_zeros(y.shape[0]).index_add(0, column, row_pos)
    return logits.logsumexp(1), logits.logsumexp(0), row_pos, col_pos


def eager_in_a_batch(
    x: Tensor, y: Tensor, scale: Tensor, bias: Tensor, target: Tensor
) -> Sequence[Tensor]:
    """The same among more rows and in reverse: for a few rows PyTorch takes another product."""
    rows, columns = x.shape[0], y.shape[0]
    extra = x.new_zeros(64, x.shape[1])
    x, y = torch.cat([extra, x.flip(0)]), torch.cat([extra, y.flip(0)])
    logits = (scale * (x.flip(1) @ y.flip(1).T) + bias)[64:, 64:].flip(0, 1)
    assert logits.shape == (rows, columns)
    has_positive, column = target >= 0, target.clamp_min(0)
    row_pos = torch.where(has_positive, logits.gather(1, column[:, None])[:, 0], 0)
    col_pos = logits.new_zeros(columns).index_add(0, column, row_pos)
    return logits.logsumexp(1), logits.logsumexp(0), row_pos, col_pos


Draw = Callable[[], tuple[Tensor, Tensor]]


def check(draw: Draw, scale: float = 100.0, target: Tensor | None = None) -> None:
    """Holds the statistics of what `draw` returns to the budget, with random targets by default."""
    x, y = draw()
    if target is None:
        target = torch.randint(-1, y.shape[0], (x.shape[0],))
    kind = "interpreted" if backends.selected(None) == "triton" and not IS_GPU else "compiled"
    # Small problems are repeated until the worst of a few numbers means something.
    count = max(2, min(SMALL_DRAWS[kind], 100_000 // (x.shape[0] * y.shape[0])))
    scalars = [torch.tensor(scale, dtype=x.dtype), torch.tensor(-3.0, dtype=x.dtype)]
    check_against_eager(
        lambda *a: functional.softmax_similarity(*a, target=target),
        [lambda *a: eager(*a, target), lambda *a: eager_in_a_batch(*a, target)],
        [[*draw(), *scalars] for _ in range(count)],
        NAMES,
    )


def unit_rows(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def random_rows(rows: int, columns: int, width: int) -> Draw:
    return lambda: (unit_rows(rows, width), unit_rows(columns, width))


def duplicates(rows: int, columns: int, width: int) -> Draw:
    """Rows of x stand again in y: some softmaxes are peaked, and some are tied."""

    def draw() -> tuple[Tensor, Tensor]:
        x, y = unit_rows(rows, width), unit_rows(columns, width)
        shared = (min(rows, columns) + 1) // 2
        y[:shared] = x[:shared]
        if columns > 2:
            y[1] = y[0]
        return x, y

    return draw


@pytest.mark.parametrize(
    ("rows", "columns", "width"),
    [(rows, columns, 64) for rows in SIZES for columns in SIZES]
    + [(rows, 1025 - rows % 9, width) for rows in (1, 100, 1025) for width in WIDTHS],
)
def test_sizes_on_and_off_every_tile(compiled: str, rows: int, columns: int, width: int) -> None:
    check(duplicates(rows, columns, width))


@pytest.mark.parametrize(
    ("rows", "columns", "width"), [(7, 100, 100), (130, 270, 512), (1000, 1025, 512)]
)
def test_duplicates(backend: str, rows: int, columns: int, width: int) -> None:
    check(duplicates(rows, columns, width))


@pytest.mark.parametrize("scale", [-20.0, 1.0, 14.0, 1e4])
def test_scales(backend: str, scale: float) -> None:
    check(duplicates(200, 150, 64), scale)


def test_scale_of_zero(backend: str) -> None:
    x, y = unit_rows(10, 64), unit_rows(20, 64)
    statistics = functional.softmax_similarity(x, y, 0.0)
    assert torch.allclose(statistics.row_lse, torch.full((10,), 20.0).double().log())
    assert torch.equal(statistics.row_pos, torch.zeros(10).double())


def test_zero_rows(backend: str) -> None:
    def draw() -> tuple[Tensor, Tensor]:
        x, y = unit_rows(100, 100), unit_rows(90, 100)
        x[3], y[7] = 0, 0
        return x, y

    check(draw)


def test_transposed_and_strided_inputs(backend: str) -> None:
    def transposed() -> Tensor:
        return F.normalize(torch.randn(64, 100), dim=0).T

    def strided() -> Tensor:
        return torch.randn(300, 160)[::3, 7:71]

    assert not transposed().is_contiguous()
    assert not strided().is_contiguous()
    check(lambda: (transposed(), strided()), 10.0)
    check(lambda: (strided(), transposed()), 10.0)
    check(lambda: (transposed(), unit_rows(1, 64).expand(50, 64)), 10.0)


@pytest.mark.parametrize("length", [3.0, 20.0])
def test_unnormalised_features(backend: str, length: float) -> None:
    check(lambda: (unit_rows(300, 64) * length, unit_rows(250, 64) * length * 10), 10.0)


def test_rows_and_columns_far_below_the_others(backend: str) -> None:
    """With one shift for the whole matrix these sums underflow; only the guard saves them."""

    def draw() -> tuple[Tensor, Tensor]:
        direction = unit_rows(1, 64)
        x = F.normalize(direction + 0.1 * unit_rows(300, 64), dim=1)
        y = F.normalize(direction + 0.1 * unit_rows(250, 64), dim=1)
        x[5] = -direction
        y[9] = -direction
        return x, y

    check(draw)
    no_positive = torch.full((300,), -1)
    statistics = functional.softmax_similarity(*draw(), 100.0, target=no_positive)
    # cos(x_5, y_9) = 1 and cos(x_7, most y) ≈ 1; cos(x_5, every other y) ≈ −1.
    assert statistics.row_lse.isfinite().all()
    assert statistics.col_lse.isfinite().all()


def test_every_target_in_one_column(backend: str) -> None:
    check(random_rows(130, 70, 32), target=torch.full((130,), 69))
    check(random_rows(130, 70, 32), target=torch.full((130,), -1))


@pytest.mark.parametrize("dtype", HALVES)
def test_16_bit_inputs(backend: str, dtype: torch.dtype) -> None:
    check(lambda: (unit_rows(130, 64).to(dtype), unit_rows(120, 64).to(dtype)), 50.0)
    x = unit_rows(5, 64).to(dtype)
    assert functional.softmax_similarity(x, x).row_lse.dtype == torch.float64


def test_gradients_in_float64() -> None:
    inputs = [torch.randn(5, 3), torch.randn(4, 3), torch.tensor(2.0), torch.tensor(0.5)]
    leaves = [value.double().requires_grad_() for value in inputs]
    target = torch.tensor([0, 3, -1, 3, 1])
    assert torch.autograd.gradcheck(
        lambda *a: functional.softmax_similarity(*a, target=target), leaves
    )


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_nan_and_inf_give_nan(backend: str, poison: float) -> None:
    x, y = unit_rows(20, 16), unit_rows(30, 16)
    x[4, 2] = poison
    x.requires_grad_()
    statistics = functional.softmax_similarity(x, y, 10.0)
    assert statistics.row_lse[4].isnan()
    assert statistics.col_lse.isnan().any()
    assert statistics.row_lse[:4].isfinite().all()
    sum(part.sum() for part in statistics).backward()
    assert x.grad is not None
    assert x.grad[4].isnan().any()
    scale = torch.tensor(poison)
    assert functional.softmax_similarity(x.detach()[:4], y, scale).row_lse.isnan().all()


def test_invariance_to_row_order(backend: str) -> None:
    x, y = unit_rows(333, 40), unit_rows(222, 40)
    order, target = torch.randperm(333), torch.randint(0, 222, (333,))
    straight = functional.softmax_similarity(x, y, 30.0, target=target)
    shuffled = functional.softmax_similarity(x[order], y, 30.0, target=target[order])
    torch.testing.assert_close(shuffled.row_lse, straight.row_lse[order], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shuffled.col_lse, straight.col_lse, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(shuffled.col_pos, straight.col_pos, rtol=1e-6, atol=1e-5)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_same_bits_twice_and_any_thread_count(compiled: str, threads: None, count: int) -> None:
    torch.set_num_threads(count)
    x, y = unit_rows(500, 100).requires_grad_(), unit_rows(450, 100).requires_grad_()

    def run() -> list[Tensor]:
        statistics = functional.softmax_similarity(x, y, 100.0, target=torch.arange(500) % 450)
        return [*statistics, *torch.autograd.grad(sum(part.sum() for part in statistics), (x, y))]

    first, second = run(), run()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    check(random_rows(500, 450, 100))


def test_more_threads_than_rows(compiled: str, threads: None) -> None:
    torch.set_num_threads(8)
    check(random_rows(3, 2, 20))
