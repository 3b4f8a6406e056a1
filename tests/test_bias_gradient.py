"""The gradient of the scalar bias in closed form, against the sum of G over the whole matrix."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from machines import DEVICE
from pair_cases import PAIRS, SYMMETRIC_PAIRS, Vectors, classes, labels, labels_and_groups
from softmax_cases import DENOMINATORS, unit_rows

from mmcore.backends.inputs import (
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.ops.bias_gradient import bias_gradient
from mmcore.ops.softmax_similarity import family

ROWS, COLUMNS = 60, 50
VECTORS = ("target", "row_label", "col_label", "row_group", "col_group")
CASES: list[Any] = [
    *((pairs, "sum", False) for pairs in PAIRS),
    *((pairs, "log_sum_exp", False) for pairs in (labels, labels_and_groups)),
    *((pairs, "sum", True) for pairs in SYMMETRIC_PAIRS),
    (classes, "log_sum_exp", True),
]


def check(inputs: SimilarityInputs) -> None:
    """Against the gradients of the rows' biases by the reference in float64, which add up to G."""
    inputs = inputs._replace(row_bias=torch.zeros(inputs.x.shape[0]).double())
    found = family(inputs, backend="reference")
    upstream = SoftmaxUpstream(*(torch.randn_like(each) for each in found[:4]))
    wanted = SoftmaxWanted(x=False, y=False, scale=False, row_bias=True)
    *_, grad_row_bias, _ = family.backward(
        inputs, found, upstream, wanted, rounds=True, backend="reference"
    )
    assert isinstance(grad_row_bias, torch.Tensor)
    expected = grad_row_bias.sum() / (2 if inputs.y is None else 1)
    gradient = bias_gradient(inputs, found, upstream)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("has_columns", [True, False])
@pytest.mark.parametrize("denominator", DENOMINATORS)
@pytest.mark.parametrize(("pairs", "positives", "is_symmetric"), CASES)
def test_against_the_sum_over_the_matrix(
    pairs: Callable[[int, int], Vectors], positives: str, is_symmetric: bool, denominator: str,
    has_columns: bool,
) -> None:  # fmt: skip
    """Catches a softmax of nothing that is counted, a -1 that is a positive, and a wrong side."""
    vectors = pairs(ROWS, ROWS if is_symmetric else COLUMNS)
    check(
        SimilarityInputs(
            unit_rows(ROWS, 20).double(), None if is_symmetric else unit_rows(COLUMNS, 20).double(),
            torch.tensor(9.0).double(), torch.tensor(-1.0).double(), None, None,
            *(vectors.get(name) for name in VECTORS), denominator=denominator,
            has_columns=has_columns, positives=positives,
        )
    )  # fmt: skip


def test_ids_of_any_size() -> None:
    """Catches labels and groups that overflow, or meet, where both become one number."""
    ids = torch.tensor([-(2**62), -7, -1, 0, 1, 2**31, 2**62])
    label, group = (ids[torch.randint(0, len(ids), (ROWS,))] for _ in range(2))
    check(
        SimilarityInputs(
            unit_rows(ROWS, 20).double(), None, torch.tensor(9.0).double(),
            torch.tensor(-1.0).double(), None, None, None, label, None, group, None,
        )
    )  # fmt: skip


def test_nan_stays() -> None:
    """Catches a gradient that is finite where the loss is not."""
    x = torch.full((3, 2), torch.nan).double()
    inputs = SimilarityInputs(
        x, None, torch.tensor(1.0).double(), torch.tensor(0.0).double(), None, None,
        torch.arange(3), None, None, None, None,
    )  # fmt: skip
    *statistics, kept = torch.ops.mmcore.softmax_similarity(*inputs, 0, "reference")
    assert statistics[0].isnan().all()
    ones = SoftmaxUpstream(*map(torch.ones_like, statistics))
    found = bias_gradient(inputs, SoftmaxStatistics(*statistics, kept), ones)
    assert found.isnan()
    assert found.device.type == torch.device(DEVICE).type


def test_a_gradient_of_a_row_without_positives_is_left_out() -> None:
    """Catches 0·∞: such a row has no part in the sum, however large its upstream gradient is."""
    inputs = SimilarityInputs(
        unit_rows(4, 3).double(), unit_rows(3, 3).double(), torch.tensor(1.0).double(),
        torch.tensor(0.0).double(), None, None, None, torch.tensor([0, 1, 7, 2]),
        torch.tensor([0, 1, 2]), None, None,
    )  # fmt: skip
    found = family(inputs, backend="reference")
    upstream = SoftmaxUpstream(*(torch.ones_like(each) for each in found[:4]))
    upstream.row_pos[2] = torch.inf
    assert bias_gradient(inputs, found, upstream).isfinite()
