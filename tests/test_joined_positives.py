"""softmax_similarity with positives="log_sum_exp"; its formulas are in test_softmax_pairs.py."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from machines import HALVES
from pair_cases import labels
from softmax_cases import STATISTICS, eager, kernel, unit_rows
from torch import Tensor

from mmcore import functional

pytestmark = pytest.mark.op


@pytest.mark.parametrize(("scale", "length"), [(100.0, 1.0), (10.0, 30.0)])
def test_positives_far_below_the_others(compiled: str, scale: float, length: float) -> None:
    """Up to 200 nats, where no exponential of the whole matrix's shift is left of them."""
    row, col = torch.arange(230) % 50, torch.arange(200) % 50
    draws = []
    for _ in range(4):
        direction = unit_rows(1, 64)
        x, y = (F.normalize(direction + 0.1 * unit_rows(rows, 64)) for rows in (230, 200))
        x[row == 7], y[col == 9] = -direction, -direction
        draws.append([length * x, y, torch.tensor(scale)])
    vectors = {"row_label": row, "col_label": col}
    check_against_eager(
        kernel(vectors, "all", positives="log_sum_exp"),
        [eager(vectors, "all", order, "log_sum_exp") for order in (1, -1)],
        draws,
        [*STATISTICS, "grad_x", "grad_y", "grad_scale"],
    )


def test_a_row_without_positives(backend: str) -> None:
    """−inf, and no gradient: neither a label that no column has, nor none at all."""
    x, y = unit_rows(30, 8).requires_grad_(), unit_rows(40, 8).requires_grad_()
    row_label = torch.arange(30) % 5
    row_label[7], row_label[8] = -1, 99
    statistics = functional.softmax_similarity(
        x, y, 9.0, row_label=row_label, col_label=torch.arange(40) % 5, positives="log_sum_exp"
    )
    assert (statistics.row_pos == -torch.inf).nonzero().flatten().tolist() == [7, 8]
    gradients = torch.autograd.grad(statistics.row_pos.sum(), (x, y))
    assert torch.equal(gradients[0][7:9], torch.zeros(2, 8))
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("dtype", HALVES)
def test_short_numbers(backend: str, dtype: torch.dtype) -> None:
    vectors = labels(90, 70)
    x, y = (unit_rows(rows, 32).to(dtype).requires_grad_() for rows in (90, 70))
    ours = kernel(vectors, "all", positives="log_sum_exp")(x, y, torch.tensor(20.0))
    exact = eager(vectors, "all", positives="log_sum_exp")(
        x.double(), y.double(), torch.tensor(20.0)
    )
    for one, other in zip(ours, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    pairs = [
        torch.autograd.grad(sum(part.sum() for part in each), (x, y)) for each in (ours, exact)
    ]
    torch.testing.assert_close(*pairs, rtol=2e-2, atol=2e-1)


@pytest.mark.parametrize("noise", [0.05, 0.1])
@pytest.mark.parametrize("denominator", ["all", "negatives"])
def test_bfloat16_near_convergence(backend: str, denominator: str, noise: float) -> None:
    """As exact as with the positives in a call of their own, whatever is kept for the backward."""
    label = torch.arange(32) // 4

    def gradients(x: Tensor, y: Tensor, is_joined: bool) -> Tensor:
        scale = torch.tensor(20.0)
        vectors = {"row_label": label, "col_label": label}
        if x.dtype == torch.float64:
            exact = eager(vectors, denominator, positives="log_sum_exp")
            lse, _, positive, _ = exact(x, y, scale)
        else:
            joins = "log_sum_exp" if is_joined else "sum"
            lse, _, positive, _ = functional.softmax_similarity(
                x, y, scale, **vectors, denominator=denominator, positives=joins
            )
            if not is_joined:
                positive = functional.softmax_similarity(
                    x, y, scale, **vectors, denominator="positives"
                ).row_lse
        return torch.cat(torch.autograd.grad((lse - positive).mean(), (x, y))).double()

    errors = torch.zeros(2, dtype=torch.float64)
    for _ in range(4):
        centre = unit_rows(8, 64)[label]
        x, y = (
            F.normalize(centre + noise * torch.randn(32, 64)).bfloat16().requires_grad_()
            for _ in range(2)
        )
        exact = gradients(*(z.detach().double().requires_grad_() for z in (x, y)), True)
        for i, is_joined in enumerate((True, False)):
            errors[i] += (gradients(x, y, is_joined) - exact).norm() / exact.norm()
    assert errors[0] <= 1.5 * errors[1] + 1e-2


def test_nan_spoils_the_rows_it_is_a_positive_of(backend: str) -> None:
    x, y = unit_rows(20, 8), unit_rows(20, 8)
    y[3] = torch.nan
    label = torch.arange(20) % 4
    statistics = functional.softmax_similarity(
        x, y, 5.0, row_label=label, col_label=label, positives="log_sum_exp"
    )
    assert torch.equal(statistics.row_pos.isnan(), label == 3)
    assert statistics.row_lse.isnan().all()
