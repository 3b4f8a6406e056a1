"""symile_loss against its formula over whole matrices."""

from __future__ import annotations

import pytest
import torch
from machines import DEVICE
from objective_cases import ROWS, check, cross_entropy, draws_of_several, every_kind, unit_rows
from torch import Tensor

from mmcore import functional

pytestmark = pytest.mark.objective


@every_kind
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_symile(backend: str, kind: str, modalities: int) -> None:
    target = torch.arange(ROWS)

    def plain(*inputs: Tensor) -> Tensor:
        *features, scale = inputs
        losses = []
        for m, x in enumerate(features):
            key = torch.stack([*features[:m], *features[m + 1 :]]).prod(0)
            losses.append(cross_entropy(scale * (x @ key.T), target))
        return torch.stack(losses).mean()

    def ours(*inputs: Tensor) -> Tensor:
        *features, scale = inputs
        return functional.symile_loss(dict(zip("abcd", features, strict=False)), scale)

    check(ours, plain, draws_of_several(kind, modalities, (1.0, 50.0, 100.0)))


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


def shuffled(features: list[Tensor], order: list[Tensor], scale: Tensor) -> Tensor:
    """Of each anchor in the order of its own rows, each row's keys told apart one by one."""
    losses, every = [], torch.stack(features).prod(0)
    positive = scale * every.sum(1)
    for m, x in enumerate(features):
        others = [
            z[rows] for k, (z, rows) in enumerate(zip(features, order, strict=True)) if k != m
        ]
        logits = scale * (x @ torch.stack(others).prod(0).T)
        # Slot j holds row order[m][j] of modality m: there row i = order[m][j] finds its positive.
        is_own = order[m] == torch.arange(len(x))[:, None]
        logits = torch.where(is_own, positive[:, None], logits)
        losses.append((logits.logsumexp(1) - positive).mean())
    return torch.stack(losses).mean()


@every_kind
@pytest.mark.parametrize("modalities", [2, 3])
def test_symile_of_shuffled_rows(backend: str, kind: str, modalities: int) -> None:
    def drawn() -> torch.Generator:
        return torch.Generator(DEVICE).manual_seed(3)

    generator = drawn()
    order = [torch.randperm(ROWS, generator=generator) for _ in range(modalities)]

    def ours(*inputs: Tensor) -> Tensor:
        *features, scale = inputs
        named = dict(zip("abc", features, strict=False))
        return functional.symile_loss(named, scale, negatives="shuffled", generator=drawn())

    check(
        ours,
        lambda *inputs: shuffled(list(inputs[:-1]), order, inputs[-1]),
        draws_of_several(kind, modalities, (1.0, 50.0, 100.0)),
    )


def test_symile_shuffles_anew_in_every_call() -> None:
    features = {name: unit_rows() for name in "abc"}
    torch.manual_seed(1)
    first, second = (functional.symile_loss(features, 9.0, negatives="shuffled") for _ in range(2))
    torch.manual_seed(1)
    assert functional.symile_loss(features, 9.0, negatives="shuffled") == first != second
