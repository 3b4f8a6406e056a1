"""gram_loss where determinants are 0, and other edges; its formula: test_objectives.py."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from objective_cases import ROWS, near, unit_rows
from torch import Tensor

from mmcore.bench.catalogue import Draw
from mmcore.bench.catalogue.volume import gram
from mmcore.functional import gram_loss

pytestmark = pytest.mark.objective


def plain_loss(*rows: Tensor, scale: Tensor) -> Tensor:
    return gram(named(*rows), scale, anchor="text")


def named(*rows: Tensor) -> dict[str, Tensor]:
    return {"text": rows[0], **{f"other {i}": each for i, each in enumerate(rows[1:])}}


def test_the_anchor_is_the_one_that_is_named() -> None:
    a, b, c = (unit_rows() for _ in range(3))
    found = gram_loss({"a": a, "b": b, "c": c}, 9.0, anchor="b")
    torch.testing.assert_close(found, plain_loss(b, a, c, scale=torch.tensor(9.0)))


@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_gradients_in_float64(modalities: int) -> None:
    draw = Draw(rows=7, dtype=torch.float64)
    inputs = [z.requires_grad_() for z in (*draw.sides(modalities), draw.scalar_scale())]

    def loss(*inputs: Tensor) -> Tensor:
        return gram_loss(named(*inputs[:-1]), inputs[-1], anchor="text", label_smoothing=0.1)

    assert torch.autograd.gradcheck(loss, inputs)
    x, *others, scale = (z.detach() for z in inputs)
    torch.library.opcheck(torch.ops.mmcore.volume, (x, others, scale, "reference"))


@pytest.mark.parametrize("learnt", range(4))
def test_all_but_one_frozen(learnt: int) -> None:
    """The anchor, one of the others, or the scale alone."""
    inputs = [unit_rows(), unit_rows(), unit_rows(), torch.tensor(9.0)]
    inputs[learnt].requires_grad_()
    *rows, scale = inputs
    ours = gram_loss(named(*rows), scale, anchor="text")
    plain = plain_loss(*rows, scale=scale)
    pair = [torch.autograd.grad(loss, inputs[learnt])[0] for loss in (ours, plain)]
    torch.testing.assert_close(*pair, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("modality", range(3))
def test_what_is_not_finite_is_seen(modality: int, value: float) -> None:
    rows = [unit_rows() for _ in range(3)]
    rows[modality][2, 3] = value
    leaves = [z.requires_grad_() for z in rows]
    loss = gram_loss(named(*leaves), 9.0, anchor="text")
    assert loss.isnan()
    for gradient in torch.autograd.grad(loss, leaves):
        assert gradient.isnan().any()


def test_bfloat16_gives_float32() -> None:
    rows = [unit_rows().bfloat16().requires_grad_() for _ in range(3)]
    ours = gram_loss(named(*rows), 9.0, anchor="text")
    plain = plain_loss(*(z.double() for z in rows), scale=torch.tensor(9.0).double())
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours.double(), plain, rtol=1e-6, atol=0)
    for z in rows:
        one, other = (torch.autograd.grad(loss, z, retain_graph=True)[0] for loss in (ours, plain))
        torch.testing.assert_close(one, other, rtol=2e-2, atol=2e-2 * other.abs().max().item())


DEGENERATE: dict[str, Callable[[Tensor], list[Tensor]]] = {
    "all equal": lambda x: [x, x.clone(), x.clone()],
    "the anchor in the span": lambda x: [x, x.clone(), x.roll(1, 0)],
    "two others equal": lambda x: [x, x.roll(1, 0), x.roll(1, 0)],
    "three others in a plane": lambda x: [
        x, x.roll(1, 0), x.roll(2, 0), F.normalize(x.roll(1, 0) + x.roll(2, 0), dim=1)
    ],
    "two others all but equal": lambda x: [x, x.roll(1, 0), near(x.roll(1, 0), 1e-5)],
    "rows of zeros": lambda x: [x, x.roll(1, 0) * (x[:, :1] > 0), x * (x[:, 1:2] > 0)],
    "all rows equal": lambda x: [x[:1].expand(ROWS, -1)] * 3,
    "fewer columns than modalities": lambda x: [x[:, :2], x[:, 2:4], x[:, 4:6], x[:, 6:8]],
}  # fmt: skip


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_rows(name: str, dtype: torch.dtype) -> None:
    """Finite, as small as rounding leaves them, and of a gradient that stays finite."""
    rows = [z.to(dtype).clone().requires_grad_() for z in DEGENERATE[name](unit_rows())]
    ours = gram_loss(named(*rows), 20.0, anchor="text")
    plain = plain_loss(*(z.double() for z in rows), scale=torch.tensor(20.0).double())
    torch.testing.assert_close(ours.double(), plain, rtol=1e-3, atol=1e-3)
    for gradient in torch.autograd.grad(ours, rows):
        assert gradient.isfinite().all()
        assert gradient.abs().max() < 100


def test_parallel_others_have_no_volume_and_no_gradient() -> None:
    x = unit_rows().requires_grad_()
    y = unit_rows()
    loss = gram_loss(named(x, y, -2 * y), 20.0, anchor="text")
    torch.testing.assert_close(loss, torch.tensor(float(ROWS)).log())
    assert torch.equal(torch.autograd.grad(loss, x)[0], torch.zeros_like(x))


def test_one_row_has_no_negatives() -> None:
    rows = [unit_rows(1).requires_grad_() for _ in range(3)]
    loss = gram_loss(named(*rows), 20.0, anchor="text")
    assert loss.item() == pytest.approx(0, abs=1e-12)
    for gradient in torch.autograd.grad(loss, rows):
        assert torch.equal(gradient, torch.zeros_like(gradient))


X = unit_rows(12)
Z = named(X, X)
REFUSED: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: gram_loss([X, X], 5.0, anchor="text"), TypeError, "features must be a mapping of nam"),
    (lambda: gram_loss({"a": X}, 5.0, anchor="a"), ValueError, "features must have at least 2 mod"),
    (
        lambda: gram_loss(Z, 5.0, anchor="audio"),
        ValueError,
        "anchor must name modalities of features ('text', 'other 0'), got 'audio'",
    ),
    (
        lambda: gram_loss(named(X, X[:5]), 5.0, anchor="text"),
        ValueError,
        "features must have as many rows in every modality",
    ),
    (
        lambda: gram_loss(named(X, X.double()), 5.0, anchor="text"),
        TypeError,
        "features['other 0'] must have dtype float32",
    ),
    (
        lambda: gram_loss(named(X[:0], X[:0]), 5.0, anchor="text"),
        ValueError,
        "features['text'] must have at least 1 row",
    ),
    (lambda: gram_loss(Z, torch.ones(3), anchor="text"), ValueError, "scale must be a scalar, got"),
    (
        lambda: gram_loss(Z, 5.0, anchor="text", label_smoothing=1.0),
        ValueError,
        "label_smoothing must be in [0, 1), got 1.0",
    ),
]


@pytest.mark.parametrize(("call", "error", "message"), REFUSED)
def test_what_is_refused(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
