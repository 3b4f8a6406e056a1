"""symile_loss against the authors' package, whose random orders are prescribed."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from peer_cases import check, features, needs
from torch import Tensor

from mmcore import functional


def unit_rows(modalities: int) -> list[Tensor]:
    rows = [each for _ in range(modalities) for each in features()]
    return [F.normalize(z.detach(), dim=1).requires_grad_() for z in rows[:modalities]]


def named(towers: tuple[Tensor, ...]) -> dict[str, Tensor]:
    return dict(zip("abcd", towers, strict=False))


@needs("symile")
@pytest.mark.parametrize("scale", [1.0, 14.3])
@pytest.mark.parametrize("modalities", [2, 3, 4])
def test_shuffled_negatives(monkeypatch: pytest.MonkeyPatch, modalities: int, scale: float) -> None:
    from symile import Symile

    logit_scale, towers = torch.tensor(scale, requires_grad=True), unit_rows(modalities)
    generator = torch.Generator()
    order = [
        torch.randperm(len(z), generator=generator.manual_seed(i)) for i, z in enumerate(towers)
    ]

    def theirs(*inputs: Tensor) -> Tensor:
        # They leave the anchor's rows alone and shuffle the others anew for each anchor.
        orders = iter(
            [
                order[k][order[m].argsort()]
                for m in range(modalities)
                for k in range(modalities)
                if k != m
            ]
        )
        *z, s = inputs
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randperm", lambda *_, **__: next(orders))
            loss: Tensor = Symile(negative_sampling="n").forward(z, s)
        return loss

    def ours(*inputs: Tensor) -> Tensor:
        *z, s = inputs
        orders = iter(order)
        with monkeypatch.context() as patched:
            patched.setattr(torch, "randperm", lambda *_, **__: next(orders))
            return functional.symile_loss(named(tuple(z)), s, negatives="shuffled")

    check(ours, theirs, [*towers, logit_scale])
