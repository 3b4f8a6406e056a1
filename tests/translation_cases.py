"""Two sides that share something, for the tests of maps between spaces."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = ("ridge", "procrustes", "cca")


def sides(count: int = 101, x_width: int = 12, y_width: int = 8) -> tuple[Tensor, Tensor]:
    """Two sides that share something, far from the origin, columns of several scales; float64."""
    shared = torch.randn(count, 6, dtype=torch.float64)
    x, y = (
        shared @ torch.randn(6, width, dtype=torch.float64)
        + 0.5 * torch.randn(count, width, dtype=torch.float64)
        for width in (x_width, y_width)
    )
    return x * torch.logspace(-1, 1, x_width) + 5, y - 3


def assert_close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
