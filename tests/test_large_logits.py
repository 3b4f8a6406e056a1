"""Features of any norm, scales and biases of any size: the budget holds, and nothing overflows.

Logits reach 10¹⁸. float64 keeps 16 digits of a log-sum-exp, so that the softmax of a row whose two
largest logits are nearly equal is known to |logit|·10⁻¹⁶: the draws with duplicates end at 10⁹.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from torch import Tensor

import mmcore
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


@pytest.mark.parametrize("norm", [1e3, 1e6])
@pytest.mark.parametrize("kind", ["target", "label"])
def test_softmax_similarity_where_y_is_x(backend: str, norm: float, kind: str) -> None:
    """Catches products whose bits depend on which of two rows comes first."""
    index = torch.arange(ROWS)
    pairs = {"target": (index + 1) % ROWS} if kind == "target" else {"row_label": index // 2}

    def kernel(x: Tensor) -> Sequence[Tensor]:
        found = functional.softmax_similarity(x, x, 1 / 0.07, row_group=index, **pairs)
        return found.row_lse, found.col_lse

    def plain(x: Tensor) -> Sequence[Tensor]:
        logits = (1 / 0.07) * (x @ x.T)  # no float32 number
        logits = logits.masked_fill(torch.eye(ROWS, dtype=torch.bool), -torch.inf)
        return logits.logsumexp(1), logits.logsumexp(0)

    def in_reverse(x: Tensor) -> Sequence[Tensor]:
        return plain(x.flip(1))

    draws = [[rows(ROWS, norm)] for _ in range(8)]
    check_against_eager(kernel, [plain, in_reverse], draws, ["row_lse", "col_lse", "grad_x"])


@pytest.mark.parametrize(("logit", "error"), [(1e9, 1e-7), (1e14, 1e-2)])
def test_two_equal_logits(backend: str, logit: float, error: float) -> None:
    """Catches fewer digits of the softmax than docs/performance.md names among the exceptions."""
    x, y = torch.full((1, 1), logit**0.5), torch.full((2, 1), logit**0.5)
    col_bias, nobody = torch.zeros(2, requires_grad=True), torch.tensor([-1])
    found = functional.softmax_similarity(x, y, target=nobody, col_bias=col_bias)
    (softmax,) = torch.autograd.grad(found.row_lse.sum(), col_bias)
    torch.testing.assert_close(softmax, torch.full_like(softmax, 0.5), rtol=0, atol=error)


ROWS_OF_A_COLLAPSED_BATCH = 24
COLLAPSED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "clip_loss": lambda x, y: functional.clip_loss(x, y, 100.0),
    "info_nce_loss, queue": lambda x, y: functional.info_nce_loss(x, y, 100.0, queue=y.detach()),
    "nt_xent_loss": lambda x, y: functional.nt_xent_loss(x, y, 100.0),
    "dcl_loss": lambda x, y: functional.dcl_loss(x, y, 100.0),
    "sup_con_loss": lambda x, y: functional.sup_con_loss(x, torch.arange(len(x)) // 4, 100.0),
    "matryoshka_loss": lambda x, y: functional.matryoshka_loss(x, y, 100.0, dims=[16, 64]),
    "distill_clip_loss": lambda x, y: (
        functional.distill_clip_loss(x, y, 100.0, x.detach(), y.detach(), 100.0).distillation
    ),
    "linear_cross_entropy_loss": lambda x, y: functional.linear_cross_entropy_loss(
        10 * x, 10 * y, torch.arange(len(x))
    ),
}


@pytest.mark.parametrize("name", COLLAPSED)
def test_a_batch_whose_rows_are_all_equal(on_host: str, name: str) -> None:
    """Catches a target, or a positive, whose logit is not rounded as the other logits are.

    The loss is the logarithm of a count: eager's errors cancel, and so must these. On Triton they
    do not (docs/performance.md).
    """
    row = F.normalize(torch.randn(1, 64), dim=1)

    def loss_and_gradients(dtype: torch.dtype) -> list[Tensor]:
        leaves = [row.to(dtype).repeat(ROWS_OF_A_COLLAPSED_BATCH, 1) for _ in range(2)]
        loss = COLLAPSED[name](*(leaf.requires_grad_() for leaf in leaves))
        gradients = torch.autograd.grad(loss, leaves, materialize_grads=True, allow_unused=True)
        return [loss.detach(), *gradients]

    loss, *gradients = loss_and_gradients(torch.float32)
    with mmcore.backend("reference"):
        exact, *exact_gradients = loss_and_gradients(torch.float64)
    assert (loss - exact).abs() <= 3e-7 * exact
    for gradient, expected in zip(gradients, exact_gradients, strict=True):
        # Sums of numbers as large as scale/N, which cancel.
        torch.testing.assert_close(gradient.double(), expected, rtol=0, atol=1e-6 * 100 / 24)
