"""All objectives over Gram matrices: gradients, dtypes, constant columns, what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from gram_cases import BATCH, features
from objective_cases import WIDTH
from torch import Tensor

import mmcore
from mmcore import functional
from mmcore.bench.catalogue import ROWS
from mmcore.functional import gram

# The usual variant of each objective over D×D matrices, and the op itself.
LOSSES: dict[str, Callable[..., Tensor]] = {
    row.name: partial(row.function, **row.cases()[0].options(WIDTH))
    for row in ROWS.values()
    if row.gram_products is not None
}
LOSSES["gram"] = lambda x, y, **options: gram(x, y, centred=True, **options).sum()


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_of_losses_in_float64(name: str) -> None:
    x, y = (torch.randn(12, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    assert torch.autograd.gradcheck(LOSSES[name], (x, y))
    assert LOSSES[name](x, y).dtype == torch.float64


@pytest.mark.parametrize("name", LOSSES)
def test_16_bit_inputs(name: str) -> None:
    x, y = (z.bfloat16().requires_grad_() for z in features("random"))
    wide = [z.detach().double().requires_grad_() for z in (x, y)]
    found = LOSSES[name](x, y)
    with mmcore.backend("reference"):
        exact = LOSSES[name](*wide)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-4, atol=1e-4)
    gradients = torch.autograd.grad(found, [x, y])
    for one, other in zip(gradients, torch.autograd.grad(exact, wide), strict=True):
        torch.testing.assert_close(
            one.double(), other, rtol=0, atol=1e-2 * other.abs().max().item()
        )


@pytest.mark.parametrize("name", LOSSES)
def test_constant_columns_have_finite_gradients(name: str) -> None:
    x, y = (torch.ones(BATCH, WIDTH).requires_grad_() for _ in range(2))
    loss = LOSSES[name](x, y)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, [x, y]))


@pytest.mark.parametrize("name", LOSSES)
def test_autocast_changes_nothing(name: str) -> None:
    x, y = features("random")
    with torch.autocast(x.device.type, torch.bfloat16):
        inside = LOSSES[name](x, y)
    assert torch.equal(inside, LOSSES[name](x, y))


@pytest.mark.parametrize("name", LOSSES)
def test_the_backend_is_handed_on(name: str) -> None:
    with pytest.raises(ValueError, match="backend must be one of"):
        LOSSES[name](X, X, backend="gpu")


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_gram_compiles_to_one_graph() -> None:
    torch.compiler.reset()
    loss, (x, y) = LOSSES["gram"], features("random", 60)
    x.requires_grad_()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y)
    torch.testing.assert_close(compiled, loss(x, y), rtol=1e-6, atol=0)
    torch.testing.assert_close(
        torch.autograd.grad(compiled, x)[0], torch.autograd.grad(loss(x, y), x)[0]
    )


X = torch.randn(12, 8)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: gram(3.0), TypeError, "x must be a tensor, got float"),
    (lambda: gram(X[:0]), ValueError, "x must have at least 1 row, got shape (0, 8)"),
    (lambda: gram(X, X[:5]), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: gram(X, X.double()), TypeError, "y must have dtype float32 to match x, got float64"),
    (lambda: gram(X, centred=1), TypeError, "centred must be True or False, got int"),
    (lambda: functional.barlow_twins_loss(X, X[:5]), ValueError, "second must have 12 rows to match first, got 5"),
    (lambda: functional.barlow_twins_loss(X, X[:, :4]), ValueError, "second must have 8 columns to match first, got 4"),
    (lambda: functional.barlow_twins_loss(X[:1], X[:1]), ValueError, "first must have at least 2 rows, got 1"),
    (lambda: functional.barlow_twins_loss(X, X, off_diagonal_weight=-1.0), ValueError, "off_diagonal_weight must be finite and at least 0, got -1.0"),
    (lambda: functional.barlow_twins_loss(X, X, eps=0.0), ValueError, "eps must be finite and above 0, got 0.0"),
    (lambda: functional.vicreg_loss(X, X[:5]), ValueError, "second must have 12 rows to match first, got 5"),
    (lambda: functional.vicreg_loss(X, X, invariance_weight=-1.0), ValueError, "invariance_weight must be finite and at least 0, got -1.0"),
    (lambda: functional.vicreg_loss(X, X, variance_weight=-1.0), ValueError, "variance_weight must be finite and at least 0, got -1.0"),
    (lambda: functional.vicreg_loss(X, X, covariance_weight="1"), TypeError, "covariance_weight must be a number, got str"),
    (lambda: functional.vicreg_loss(X, X, eps=0.0), ValueError, "eps must be finite and above 0, got 0.0"),
    (lambda: functional.soft_cca_loss(X, X[:5], decorrelation_weight=1.0), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: functional.soft_cca_loss(X, X, decorrelation_weight=-1.0), ValueError, "decorrelation_weight must be finite and at least 0, got -1.0"),
    (lambda: functional.soft_cca_loss(X, X, decorrelation_weight=1.0, eps=0.0), ValueError, "eps must be finite and above 0, got 0.0"),
    (lambda: functional.cca_loss(X, X[:5]), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: functional.cca_loss(X[:1], X[:1]), ValueError, "x must have at least 2 rows, got 1"),
    (lambda: functional.cca_loss(X, X[:, :4], components=5), ValueError, "components must be from 1 to 4, got 5"),
    (lambda: functional.cca_loss(X, X, components=2.0), TypeError, "components must be an integer, got float"),
    (lambda: functional.cca_loss(X, X, regularization=0.0), ValueError, "regularization must be finite and above 0, got 0.0"),
    (lambda: functional.coral_loss(X, X[:, :4]), ValueError, "y must have 8 columns to match x, got 4"),
    (lambda: functional.coral_loss(X, X[:1]), ValueError, "y must have at least 2 rows, got 1"),
    (lambda: functional.cka_loss(X, X[:5]), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: functional.cyclip_loss(X, X[:5]), ValueError, "y must have 12 rows to match x, got 5"),
    (lambda: functional.cyclip_loss(X, X, cross_modal_weight=-1.0), ValueError, "cross_modal_weight must be finite and at least 0, got -1.0"),
    (lambda: functional.cyclip_loss(X, X, in_modal_weight=-1.0), ValueError, "in_modal_weight must be finite and at least 0, got -1.0"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
