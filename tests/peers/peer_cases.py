"""What the tests beside other libraries share: features and the comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec

import pytest
import torch
from torch import Tensor

Loss = Callable[..., Tensor]
# In `make test-peers`, which installs all.
ARE_INSTALLED = "MMCORE_TEST_PEERS" in os.environ


def needs(package: str) -> pytest.MarkDecorator:
    """Skips where the package is absent, but not in `make test-peers`."""
    is_skipped = not ARE_INSTALLED and find_spec(package) is None
    return pytest.mark.skipif(is_skipped, reason=f"{package} is not installed")


def features(rows: int = 48, width: int = 32) -> list[Tensor]:
    """Two sides that are not of unit length, whose gradients are wanted."""
    x = torch.randn(rows, width)
    return [x.requires_grad_(), (x.detach() + torch.randn(rows, width)).requires_grad_()]


def check(ours: Loss, theirs: Loss, inputs: Sequence[Tensor]) -> None:
    """Value, and the gradient of every matrix; of scalars where both are functions of them."""
    results = []
    for loss in (ours, theirs):
        value = loss(*inputs)
        gradients = torch.autograd.grad(value, inputs, allow_unused=True)
        results.append([value.detach(), *gradients])
    for given, one, other in zip([None, *inputs], *results, strict=True):
        if other is None:
            assert given is not None
            assert given.ndim == 0
            continue
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
