"""symile_loss where a modality is frozen, and under autocast; its formula: test_objectives.py."""

from __future__ import annotations

import pytest
import torch
from machines import DEVICE
from objective_cases import unit_rows

from mmcore import functional

pytestmark = pytest.mark.objective


def test_symile_of_a_scale_alone(backend: str) -> None:
    features = {name: unit_rows() for name in "abc"}
    scale = torch.tensor(9.0, requires_grad=True)
    (gradient,) = torch.autograd.grad(functional.symile_loss(features, scale), scale)
    every = {name: z.clone().requires_grad_() for name, z in features.items()}
    (expected,) = torch.autograd.grad(functional.symile_loss(every, scale), scale)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("frozen", ["a", "b", "c"])
def test_symile_with_a_frozen_modality(backend: str, frozen: str) -> None:
    features = {name: unit_rows().requires_grad_(name != frozen) for name in "abc"}
    learnt = [z for name, z in features.items() if name != frozen]
    gradients = torch.autograd.grad(functional.symile_loss(features, 9.0), learnt)
    every = {name: z.detach().requires_grad_() for name, z in features.items()}
    expected = torch.autograd.grad(functional.symile_loss(every, 9.0), list(every.values()))
    kept = [g for name, g in zip(every, expected, strict=True) if name != frozen]
    torch.testing.assert_close(gradients, tuple(kept))


def test_symile_under_autocast(backend: str) -> None:
    """Anchor and key are rounded, not their factors."""
    a, b, c = (unit_rows().requires_grad_() for _ in range(3))
    with torch.autocast(DEVICE, torch.bfloat16):
        ours = functional.symile_loss({"a": a, "b": b, "c": c}, 9.0)
        of_pairs = [
            functional.clip_loss(x, key, 9.0, direction="rows")
            for x, key in ((a, b * c), (b, a * c), (c, a * b))
        ]
    plain = torch.stack(of_pairs).mean()
    torch.testing.assert_close(ours, plain)
    pair = [torch.autograd.grad(loss, (a, b, c)) for loss in (ours, plain)]
    torch.testing.assert_close(*pair, rtol=1e-2, atol=1e-5)  # of bfloat16 both


def test_symile_shuffles_anew_in_every_call() -> None:
    features = {name: unit_rows() for name in "abc"}
    torch.manual_seed(1)
    first, second = (functional.symile_loss(features, 9.0, negatives="shuffled") for _ in range(2))
    torch.manual_seed(1)
    assert functional.symile_loss(features, 9.0, negatives="shuffled") == first != second


def test_symile_draws_from_the_generator_that_is_given() -> None:
    features = {name: unit_rows() for name in "abc"}
    torch.manual_seed(3)
    expected = functional.symile_loss(features, 9.0, negatives="shuffled")
    generator = torch.Generator(DEVICE).manual_seed(3)
    found = functional.symile_loss(features, 9.0, negatives="shuffled", generator=generator)
    assert torch.equal(found, expected)
