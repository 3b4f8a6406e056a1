"""softmax_similarity against eager PyTorch and float64, on inputs made hard on purpose."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from torch import Tensor

from mmcore import functional

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


def check(x: Tensor, y: Tensor, scale: float = 100.0, target: Tensor | None = None) -> None:
    if target is None:
        target = torch.randint(-1, y.shape[0], (x.shape[0],))
    inputs = [x, y, torch.tensor(scale), torch.tensor(-3.0)]
    check_against_eager(
        lambda *a: functional.softmax_similarity(*a, target=target),
        [lambda *a: eager(*a, target), lambda *a: eager_in_a_batch(*a, target)],
        inputs,
        NAMES,
    )


def unit_rows(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def duplicated(x: Tensor, y: Tensor) -> None:
    """Copies rows of x into y, so that some softmaxes are peaked and some are tied."""
    rows = (min(len(x), len(y)) + 1) // 2
    y[:rows] = x[:rows]
    if len(y) > 2:
        y[1] = y[0]


@pytest.mark.parametrize(
    ("rows", "columns", "width"),
    [(rows, columns, 64) for rows in SIZES for columns in SIZES]
    + [(rows, 1025 - rows % 9, width) for rows in (1, 100, 1025) for width in WIDTHS],
)
def test_sizes_on_and_off_every_tile(backend: str, rows: int, columns: int, width: int) -> None:
    x, y = unit_rows(rows, width), unit_rows(columns, width)
    duplicated(x, y)
    check(x, y)


@pytest.mark.parametrize("scale", [-20.0, 1.0, 14.0, 1e4])
def test_scales(backend: str, scale: float) -> None:
    x, y = unit_rows(200, 64), unit_rows(150, 64)
    duplicated(x, y)
    check(x, y, scale)


def test_scale_of_zero(backend: str) -> None:
    x, y = unit_rows(10, 64), unit_rows(20, 64)
    statistics = functional.softmax_similarity(x, y, 0.0)
    assert torch.allclose(statistics.row_lse, torch.full((10,), 20.0).double().log())
    assert torch.equal(statistics.row_pos, torch.zeros(10).double())


def test_zero_rows(backend: str) -> None:
    x, y = unit_rows(100, 100), unit_rows(90, 100)
    x[3], y[7] = 0, 0
    check(x, y)


def test_transposed_and_strided_inputs(backend: str) -> None:
    x = F.normalize(torch.randn(64, 100), dim=0).T
    y = torch.randn(300, 160)[::3, 7:71]
    assert not x.is_contiguous()
    assert not y.is_contiguous()
    check(x, y, 10.0)
    check(y, x, 10.0)
    check(x, unit_rows(1, 64).expand(50, 64), 10.0)


@pytest.mark.parametrize("length", [3.0, 20.0])
def test_unnormalised_features(backend: str, length: float) -> None:
    check(unit_rows(300, 64) * length, unit_rows(250, 64) * length * 10, 10.0)


def test_rows_and_columns_far_below_the_others(backend: str) -> None:
    """With one shift for the whole matrix these sums underflow; only the guard saves them."""
    direction = unit_rows(1, 64)
    x = F.normalize(direction + 0.1 * unit_rows(300, 64), dim=1)
    y = F.normalize(direction + 0.1 * unit_rows(250, 64), dim=1)
    x[5] = -direction
    y[9] = -direction
    check(x, y)
    statistics = functional.softmax_similarity(x, y, 100.0)
    assert statistics.row_lse[5] < -80
    assert statistics.col_lse[9] < -80


def test_every_target_in_one_column(backend: str) -> None:
    x, y = unit_rows(130, 32), unit_rows(70, 32)
    check(x, y, target=torch.full((130,), 69))
    check(x, y, target=torch.full((130,), -1))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs(backend: str, dtype: torch.dtype) -> None:
    x, y = unit_rows(130, 64).to(dtype), unit_rows(120, 64).to(dtype)
    target = torch.randint(-1, 120, (130,))
    inputs = [x, y, torch.tensor(50.0, dtype=dtype), torch.tensor(-3.0, dtype=dtype)]
    check_against_eager(
        lambda *a: functional.softmax_similarity(*a, target=target),
        [lambda *a: eager(*a, target), lambda *a: eager_in_a_batch(*a, target)],
        inputs,
        NAMES,
    )
    assert functional.softmax_similarity(x, y, target=target).row_lse.dtype == torch.float64


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
    assert statistics.col_lse.isnan().all()
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
    check(x.detach(), y.detach())


def test_more_threads_than_rows(compiled: str, threads: None) -> None:
    torch.set_num_threads(8)
    check(unit_rows(3, 20), unit_rows(2, 20))
