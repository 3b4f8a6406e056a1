"""softmax_similarity with positives="log_sum_exp"."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from pair_cases import Vectors, classes, labels, labels_and_groups, masks
from torch import Tensor

from mmcore import functional

DENOMINATORS = ["all", "negatives", "positives"]
STATISTICS = ["row_lse", "col_lse", "row_pos", "col_pos"]
BIASES = ("row_bias", "col_bias")

Function = Callable[..., Sequence[Tensor]]


def unit_rows(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def joined(logits: Tensor, mask: Tensor, dim: int) -> Tensor:
    """log Σ exp of what the mask leaves; 0, without a gradient, of nothing."""
    is_empty = ~mask.any(dim, keepdim=True)
    result = logits.masked_fill(~mask & ~is_empty, -torch.inf).logsumexp(dim)
    return torch.where(is_empty.squeeze(dim), 0, result)


def eager(vectors: Vectors, denominator: str, order: int = 1, columns: bool = True) -> Function:
    """The formulas on the whole matrix; `order` −1 sums the other way round."""

    def run(x: Tensor, y: Tensor, scale: Tensor, *biases: Tensor) -> Sequence[Tensor]:
        positive, excluded = masks(vectors, len(x), len(y))
        if order < 0:
            x, y = x.flip(1), y.flip(1)
        logits = scale * (x @ y.T)
        if biases:
            logits = logits + biases[0][:, None] + biases[-1]
        counted = {
            "all": ~excluded,
            "negatives": ~excluded & ~positive,
            "positives": positive,
        }[denominator]
        sides = (1, 0) if columns else (1,)
        return [joined(logits, mask, side) for mask in (counted, positive) for side in sides]

    return run


def kernel(vectors: Vectors, denominator: str, columns: bool = True) -> Function:
    def run(x: Tensor, y: Tensor, scale: Tensor, *biases: Tensor) -> Sequence[Tensor]:
        settings: dict[str, Any] = dict(zip(BIASES, (*biases, *biases[-1:]), strict=False))
        statistics = functional.softmax_similarity(
            x, y, scale, denominator=denominator, positives="log_sum_exp", columns=columns,
            **settings, **vectors,
        )  # fmt: skip
        return [part.masked_fill(part == -torch.inf, 0) for part in statistics if part.numel()]

    return run


@pytest.mark.parametrize("has_biases", [False, True])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("pairs", [labels, labels_and_groups])
@pytest.mark.parametrize("shape", [(60, 50, 20), (250, 300, 64)])
def test_formula(
    backend: str,
    shape: tuple[int, int, int],
    pairs: Callable[[int, int], Vectors],
    denominator: str,
    has_biases: bool,
) -> None:
    rows, columns, width = shape
    vectors = pairs(rows, columns)

    def draw() -> list[Tensor]:
        y = unit_rows(columns, width)
        x = torch.cat([y[: rows // 4].clone(), unit_rows(rows - rows // 4, width)])
        biases = [torch.randn(rows), 4 * torch.randn(columns)] if has_biases else []
        return [x, y, torch.tensor(30.0), *biases]

    check_against_eager(
        kernel(vectors, denominator),
        [eager(vectors, denominator, order) for order in (1, -1)],
        [draw() for _ in range(4)],
        [*STATISTICS, "grad_x", "grad_y", "grad_scale", *BIASES[: 2 * has_biases]],
    )


@pytest.mark.parametrize("has_columns", [False, True])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize("rows", [20, 400])
def test_where_y_is_x(backend: str, rows: int, denominator: str, has_columns: bool) -> None:
    vectors = classes(rows, rows)

    def of_both(function: Function) -> Function:
        return lambda x, scale, bias: function(x, x, scale, bias)

    baselines = [eager(vectors, denominator, order, has_columns) for order in (1, -1)]
    check_against_eager(
        of_both(kernel(vectors, denominator, has_columns)),
        [of_both(baseline) for baseline in baselines],
        [[unit_rows(rows, 24), torch.tensor(30.0), torch.randn(rows)] for _ in range(6)],
        [*(STATISTICS if has_columns else STATISTICS[::2]), "grad_x", "grad_scale", "grad_bias"],
    )


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
        kernel(vectors, "all"),
        [eager(vectors, "all", order) for order in (1, -1)],
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


@pytest.mark.parametrize("pairs", [labels, labels_and_groups])
def test_gradients_in_float64(pairs: Callable[[int, int], Vectors]) -> None:
    leaves = [torch.randn(7, 3), torch.randn(6, 3), torch.tensor(2.0), torch.randn(7)]
    leaves = [leaf.double().requires_grad_() for leaf in (*leaves, torch.randn(6))]
    for denominator in DENOMINATORS:
        assert torch.autograd.gradcheck(kernel(pairs(7, 6), denominator), leaves)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_short_numbers(backend: str, dtype: torch.dtype) -> None:
    vectors = labels(90, 70)
    x, y = (unit_rows(rows, 32).to(dtype).requires_grad_() for rows in (90, 70))
    ours = kernel(vectors, "all")(x, y, torch.tensor(20.0))
    exact = eager(vectors, "all")(x.double(), y.double(), torch.tensor(20.0))
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
            lse, _, positive, _ = eager(vectors, denominator)(x, y, scale)
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
