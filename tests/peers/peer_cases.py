"""What the tests beside other libraries share: features and the comparison."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "benchmarks"))

Loss = Callable[..., Tensor]


def needs(package: str) -> pytest.MarkDecorator:
    """Skips where the package is absent, but not in `make test-peers`, which installs all."""
    is_skipped = "MMCORE_TEST_PEERS" not in os.environ and find_spec(package) is None
    return pytest.mark.skipif(is_skipped, reason=f"{package} is not installed")


def features(rows: int = 48, width: int = 32) -> list[Tensor]:
    """Two sides that are not of unit length, whose gradients are wanted."""
    x = torch.randn(rows, width)
    return [x.requires_grad_(), (x.detach() + torch.randn(rows, width)).requires_grad_()]


def check(ours: Loss, theirs: Loss, inputs: Sequence[Tensor]) -> None:
    """Value, and the gradient of every input."""
    results = []
    for loss in (ours, theirs):
        value = loss(*inputs)
        results.append([value.detach(), *torch.autograd.grad(value, inputs)])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=2e-5, atol=2e-6)
