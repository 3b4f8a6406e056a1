"""clip_loss and nn.ClipLoss against eager PyTorch and float64."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from budget import check_against_eager
from machines import DEVICE
from torch import Tensor

import mmcore
from mmcore import functional

pytestmark = pytest.mark.op

NAMES = ["loss", "grad_x", "grad_y", "grad_scale"]


def eager(x: Tensor, y: Tensor, scale: Tensor) -> Sequence[Tensor]:
    logits, target = scale * (x @ y.T), torch.arange(len(x))
    return [(F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2]


def eager_in_reverse(x: Tensor, y: Tensor, scale: Tensor) -> Sequence[Tensor]:
    """Another order of the same sums: one order alone may be exact by luck."""
    extra = x.new_zeros(64, x.shape[1])
    x, y = torch.cat([extra, x.flip(0)]), torch.cat([extra, y.flip(0)])
    logits, target = (scale * (x.flip(1) @ y.flip(1).T))[64:, 64:], torch.arange(len(x) - 64)
    return [F.cross_entropy(logits.T, target) / 2 + F.cross_entropy(logits, target) / 2]


EAGER = [eager, eager_in_reverse]


def pairs(rows: int, width: int, noise: float) -> tuple[Tensor, Tensor]:
    x = F.normalize(torch.randn(rows, width), dim=1)
    return x, F.normalize(x + noise * F.normalize(torch.randn(rows, width), dim=1), dim=1)


@pytest.mark.parametrize(("rows", "width"), [(1, 8), (7, 64), (100, 100), (1025, 512)])
@pytest.mark.parametrize("scale", [1.0, 14.0, 100.0])
def test_random_pairs(backend: str, rows: int, width: int, scale: float) -> None:
    draws = [[*pairs(rows, width, 2.0), torch.tensor(scale)] for _ in range(4)]
    check_against_eager(lambda *a: [functional.clip_loss(*a)], EAGER, draws, NAMES)


def test_duplicates(backend: str) -> None:
    draws = []
    for _ in range(4):
        x, y = pairs(200, 64, 2.0)
        x[100:], y[150:] = x[:100].clone(), y[:50].clone()
        draws.append([x, y, torch.tensor(100.0)])
    check_against_eager(lambda *a: [functional.clip_loss(*a)], EAGER, draws, NAMES)


def test_near_convergence_the_loss_keeps_its_digits(backend: str) -> None:
    """Positives at cosine 0.999: lse and pos agree to many digits, and their difference counts."""
    draws = [[*pairs(400, 16, 0.045), torch.tensor(60.0)] for _ in range(4)]
    check_against_eager(lambda *a: [functional.clip_loss(*a)], EAGER, draws, NAMES)
    for inputs in draws:
        exact = eager(*(value.double() for value in inputs))[0]
        assert exact < 1e-3
        assert abs(functional.clip_loss(*inputs) - exact) < 1e-4 * exact


def test_bias_cancels(backend: str) -> None:
    x, y = pairs(50, 32, 1.0)
    bias = torch.tensor(5.0, requires_grad=True)
    loss = functional.clip_loss(x, y, 20.0, bias)
    torch.testing.assert_close(loss, functional.clip_loss(x, y, 20.0))
    loss.backward()
    assert bias.grad is not None
    assert bias.grad.abs() < 1e-6


def test_module_takes_the_call_of_open_clip(backend: str) -> None:
    x, y = pairs(30, 16, 1.0)
    loss = mmcore.nn.ClipLoss()
    expected = eager(x, y, torch.tensor(7.0))[0]
    scale, bias = torch.tensor([7.0]), torch.tensor([1.0])
    torch.testing.assert_close(loss(x, y, torch.tensor(7.0)), expected)
    torch.testing.assert_close(loss(x, y, logit_scale=scale, logit_bias=bias), expected)
    output = loss(image_features=x, text_features=y, logit_scale=scale, output_dict=True)
    torch.testing.assert_close(output["contrastive_loss"], expected)
    assert not list(loss.parameters())
    assert not loss.state_dict()


def test_scale_of_one_element_gets_a_gradient_of_its_shape(backend: str) -> None:
    x, y = pairs(30, 16, 1.0)
    scale = torch.tensor([7.0], requires_grad=True)
    functional.clip_loss(x, y, scale).backward()
    assert scale.grad is not None
    assert scale.grad.shape == (1,)


def test_autocast_rounds_features_and_keeps_the_logits(backend: str) -> None:
    x, y = pairs(64, 32, 1.0)
    x.requires_grad_()
    with torch.autocast(DEVICE, torch.bfloat16):
        loss = functional.clip_loss(x, y, 100.0)
    expected = functional.clip_loss(x.detach().bfloat16(), y.bfloat16(), 100.0)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, expected)
    loss.backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_gradients_in_float64() -> None:
    x, y = (t.double().requires_grad_() for t in pairs(6, 4, 1.0))
    scale = torch.tensor(5.0, dtype=torch.float64, requires_grad=True)
    assert functional.clip_loss(x, y, scale).dtype == torch.float64
    assert torch.autograd.gradcheck(functional.clip_loss, (x, y, scale))


def test_siglip_module_is_called_as_open_clips() -> None:
    x, y = pairs(30, 16, 1.0)
    scale, bias = torch.tensor([7.0]), torch.tensor([-9.0])
    module = mmcore.nn.SigLipLoss()
    loss = module(x, y, scale, bias)
    assert torch.equal(module(x, y, scale, bias, output_dict=True)["contrastive_loss"], loss)
    sign = 2 * torch.eye(30) - 1
    expected = -F.logsigmoid(sign * (7 * x @ y.T - 9)).sum() / 30
    torch.testing.assert_close(loss, expected)
    assert not list(module.state_dict())
