"""distill_clip_loss: both of its losses against whole matrices, and what is refused."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from machines import HALVES
from objective_cases import ROWS, WIDTH, draws, every_kind, near, unit_rows
from torch import Tensor

from mmcore.functional import distill_clip_loss

pytestmark = pytest.mark.op


def plain(
    x: Tensor, y: Tensor, scale: Tensor, a: Tensor, b: Tensor, teacher_scale: float
) -> list[Tensor]:
    logits, teacher = scale * (x @ y.T), teacher_scale * (a @ b.T).to(x.dtype)
    target = torch.arange(len(x))
    losses = [
        F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target),
        F.cross_entropy(logits, teacher.softmax(1))
        + F.cross_entropy(logits.T, teacher.T.softmax(1)),
    ]
    return [loss / 2 for loss in losses]


def check(inputs: list[list[Tensor]], teacher: Callable[..., tuple[Tensor, Tensor, float]]) -> None:
    """Each scale by itself; plain PyTorch in other orders of its columns as well."""

    def reordered(x: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
        order = torch.randperm(WIDTH)
        a, b, teacher_scale = teacher(x, y)
        return plain(x[:, order], y[:, order], scale, a, b, teacher_scale)

    def ours(x: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
        return list(distill_clip_loss(x, y, scale, *teacher(x, y)))

    def in_order(x: Tensor, y: Tensor, scale: Tensor) -> list[Tensor]:
        return plain(x, y, scale, *teacher(x, y))

    names = ["contrastive", "distillation", "gradient x", "gradient y", "gradient scale"]
    for scale in {one[-1].item() for one in inputs}:
        same = [one for one in inputs if one[-1].item() == scale]
        check_against_eager(ours, [in_order, reordered, reordered], same, names)


@every_kind
def test_both_losses(backend: str, kind: str) -> None:
    a, b = (F.normalize(torch.randn(ROWS, 40), dim=1) for _ in range(2))
    check(draws(kind), lambda x, y: (a.to(x.dtype), b.to(x.dtype), 30.0))


def test_a_teacher_who_is_sure(backend: str) -> None:
    a = unit_rows()
    b = near(a, 0.05)
    check(draws("near"), lambda x, y: (a.to(x.dtype), b.to(x.dtype), 100.0))


def test_a_student_who_has_learned(backend: str) -> None:
    """The softmaxes are equal: what remains of the gradient is rounding."""
    x, y = unit_rows().requires_grad_(), unit_rows().requires_grad_()
    losses = distill_clip_loss(x, y, 50.0, x.detach(), y.detach(), 50.0)
    for gradient in torch.autograd.grad(losses.distillation, (x, y)):
        assert gradient.abs().max() < 1e-5


@pytest.mark.parametrize("scale", [100.0, 1e4])
def test_rows_far_below_the_bound(backend: str, scale: float) -> None:
    x = unit_rows()
    inputs = [[x, F.normalize(-x + 0.02 * unit_rows(), dim=1), torch.tensor(scale)]]
    check(inputs, lambda x, y: (x.detach(), -y.detach(), 20.0))


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("rows", [1, 13, 200])
def test_sizes_and_dtypes(backend: str, dtype: torch.dtype, rows: int) -> None:
    """Half precision, strided; the teacher is float32."""
    x, y = (
        F.normalize(torch.randn(rows, 70), dim=1)[:, ::2].to(dtype).requires_grad_()
        for _ in range(2)
    )
    a, b = (F.normalize(torch.randn(rows, 16), dim=1) for _ in range(2))
    scale = torch.tensor(20.0, requires_grad=True)
    exact = plain(x.double(), y.double(), scale, a.double(), b.double(), 30.0)
    for ours, expected in zip(distill_clip_loss(x, y, scale, a, b, 30.0), exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, rtol=1e-3, atol=1e-4)
        inputs = (x, y, scale)
        pairs = (torch.autograd.grad(z, inputs, retain_graph=True) for z in (ours, expected))
        for one, other in zip(*pairs, strict=True):
            largest = max(other.abs().max().item(), 1e-6)
            torch.testing.assert_close(one / largest, other / largest, rtol=0.02, atol=0.01)


def test_several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    from mmcore.backends.reference import distillation

    x, y, a, b = (unit_rows().double().requires_grad_(i < 2) for i in range(4))
    found = []
    for size in (2**20, 7 * ROWS):
        monkeypatch.setattr(distillation, "NUMBERS_OF_A_SLAB", size)
        losses = distill_clip_loss(x, y, 20.0, a, b, 30.0)
        found.append([*losses, *torch.autograd.grad(losses[0] + 2 * losses[1], (x, y))])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_large_features_and_a_small_scale(backend: str) -> None:
    """Products far beyond the logits, and a sharp teacher."""
    x, y, a = (unit_rows() for _ in range(3))
    b = near(a, 0.05)
    expected = distill_clip_loss(x, y, 9.0, a, b, 130.0)
    found = distill_clip_loss(3e7 * x, 3e7 * y, 1e-14, a, b, 130.0)
    torch.testing.assert_close(tuple(found), tuple(expected), rtol=1e-4, atol=1e-4)
    assert distill_clip_loss(3e7 * x, y, 0.0, a, b, 130.0).distillation.isfinite()


def test_nan_is_not_lost(backend: str) -> None:
    x, y, a, b = (unit_rows() for _ in range(4))
    a[3, 0] = torch.nan
    losses = distill_clip_loss(x, y, 20.0, a, b, 30.0)
    assert losses.contrastive.isfinite()
    assert losses.distillation.isnan()
    x[3, 0] = torch.nan
    assert distill_clip_loss(x, y, 20.0, x, b, 30.0).contrastive.isnan()


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
def test_it_compiles_to_one_graph() -> None:
    torch.compiler.reset()

    def loss(x: Tensor, y: Tensor) -> Tensor:
        return sum(distill_clip_loss(x, y, 5.0, y, y, 9.0), torch.zeros(()))

    x, y = unit_rows().requires_grad_(), unit_rows()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")(x, y)
    assert torch.equal(compiled, loss(x, y))
    torch.testing.assert_close(*(torch.autograd.grad(z, x)[0] for z in (compiled, loss(x, y))))


X, Y = unit_rows(), unit_rows()
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: distill_clip_loss(X, Y[:9], 5.0, X, Y, 5.0), ValueError, "y must have 60 rows"),
    (lambda: distill_clip_loss(X, Y, 5.0, X[:9], Y[:9], 5.0), ValueError, "teacher_x must have 60"),
    (lambda: distill_clip_loss(X, Y, 5.0, X, Y[:, :9], 5.0), ValueError, "teacher_y must have 24"),
    (
        lambda: distill_clip_loss(X, Y, 5.0, X, Y.half(), 5.0),
        TypeError,
        "teacher_y must have dtype",
    ),
    (lambda: distill_clip_loss(X, Y, 5.0, X.double(), Y.double(), 5.0), TypeError, "be float64"),
    (
        lambda: distill_clip_loss(X, Y, 5.0, X.clone().requires_grad_(), Y, 5.0),
        ValueError,
        "teacher_x must not require a gradient",
    ),
    (lambda: distill_clip_loss(X, Y, 5.0, X, Y, "a"), TypeError, "teacher_scale must be a number"),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
