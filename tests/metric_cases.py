"""The metrics, called alike."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from mmcore import metrics

METRICS: dict[str, Callable[..., Tensor]] = {
    name: getattr(metrics, name) for name in metrics.__all__
}
every_metric = pytest.mark.parametrize("name", METRICS)


def measure(name: str, x: Tensor, y: Tensor) -> Tensor:
    """A metric of two sides, or of the first."""
    return METRICS[name](x) if name == "effective_rank" else METRICS[name](x, y)


def sides(rows: int = 9) -> tuple[Tensor, Tensor]:
    """(rows, 6) each."""
    return torch.randn(rows, 6), torch.randn(rows, 6)
