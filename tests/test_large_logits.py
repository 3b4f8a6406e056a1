"""Features of any norm, scales and biases of any size: the budget holds, and nothing overflows.

Logits reach 10¹⁸. float64 keeps 16 digits of a log-sum-exp, so that the softmax of a row whose two
largest logits are nearly equal is known to |logit|·10⁻¹⁶: the draws with duplicates end at 10⁹.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from torch import Tensor

from mmcore import functional

pytestmark = pytest.mark.op

ROWS, COLUMNS, WIDTH = 13, 21, 16
STATISTICS = ["row_lse", "col_lse", "row_pos", "col_pos"]
GRADIENTS = ["grad_x", "grad_y", "grad_scale", "grad_row_bias", "grad_col_bias"]


def rows(count: int, norm: float) -> Tensor:
    return norm * F.normalize(torch.randn(count, WIDTH), dim=1)


def eager(
    x: Tensor, y: Tensor, scale: Tensor, row_bias: Tensor, col_bias: Tensor
) -> Sequence[Tensor]:
    logits = scale * (x @ y.T) + row_bias[:, None] + col_bias
    positive = logits.diagonal()
    return (
        logits.logsumexp(1), logits.logsumexp(0), positive, F.pad(positive, (0, COLUMNS - ROWS))
    )  # fmt: skip


def eager_in_reverse(
    x: Tensor, y: Tensor, scale: Tensor, row_bias: Tensor, col_bias: Tensor
) -> Sequence[Tensor]:
    return eager(x.flip(1), y.flip(1), scale, row_bias, col_bias)


@pytest.mark.parametrize("norm", [1.0, 30.0, 1e3, 1e5, 1e7])
@pytest.mark.parametrize("scale", [0.01, 1.0, 100.0, 1e4])
@pytest.mark.parametrize("bias", [0.0, 10.0, 1e3, 1e4])
def test_softmax_similarity(backend: str, norm: float, scale: float, bias: float) -> None:
    """Catches exponents that lose digits, or biases rounded in two ways, in one direction alone."""

    def kernel(*inputs: Tensor) -> Sequence[Tensor]:
        x, y, s, row_bias, col_bias = inputs
        return functional.softmax_similarity(x, y, s, row_bias=row_bias, col_bias=col_bias)

    draws = [
        [
            rows(ROWS, norm), rows(COLUMNS, norm), torch.tensor(scale),
            bias * torch.randn(ROWS), bias * torch.randn(COLUMNS),
        ]
        for _ in range(8)
    ]  # fmt: skip
    check_against_eager(kernel, [eager, eager_in_reverse], draws, [*STATISTICS, *GRADIENTS])
