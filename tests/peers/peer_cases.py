"""What the tests beside other libraries share: features and the comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from budget import Errors, missed
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
    """Value, and the gradient of every matrix; of scalars where both are functions of them.

    Both are float32, so they may differ by their roundings. Where they differ by more than usual,
    they must be equal in float64, and ours within its budget of the peer's error.
    """
    one, other = (_value_and_gradients(loss, inputs) for loss in (ours, theirs))
    kept = [i for i, found in enumerate(other) if found is not None]
    assert all(inputs[i - 1].ndim == 0 for i in range(len(other)) if i not in kept)
    try:
        for i in kept:
            torch.testing.assert_close(one[i], other[i], rtol=2e-5, atol=2e-6)
    except AssertionError:
        in_double = [z.detach().double().requires_grad_() for z in inputs]
        exact, same = (_value_and_gradients(loss, in_double) for loss in (ours, theirs))
        for i in kept:
            torch.testing.assert_close(exact[i], same[i], rtol=1e-9, atol=1e-9)
            errors = Errors()
            errors.add(str(i), one[i], [other[i]], exact[i])
            budget = 2 * errors.eager + torch.finfo(torch.float32).eps * errors.largest
            assert errors.kernel <= budget, missed(errors.kernel, budget)


def _value_and_gradients(loss: Loss, inputs: Sequence[Tensor]) -> list[Any]:
    value = loss(*inputs)
    return [value.detach(), *torch.autograd.grad(value, inputs, allow_unused=True)]
