"""Inputs for tests of Gram matrices and of the objectives over them."""

from __future__ import annotations

import pytest
import torch
from objective_cases import ROWS, WIDTH
from torch import Tensor

BATCH = 4 * ROWS


def features(kind: str, rows: int = BATCH) -> list[Tensor]:
    """Two sides whose columns have means and spreads of their own."""
    shift, spread = torch.randn(WIDTH), torch.rand(WIDTH) + 0.5
    x = torch.randn(rows, WIDTH)
    y = x + (0.01 if kind == "near" else 1.0) * torch.randn(rows, WIDTH)
    if kind == "random":
        y[:, ::3] *= -1
    if kind == "duplicates":
        x[rows // 2 :], y[rows // 2 :] = x[: rows // 2].clone(), y[: rows // 2].clone()
    if kind == "constant":
        x[:, 3], y[:, 7] = 0, 1
    if kind == "far":
        shift = 100 * shift
    return [x * spread + shift, y * spread + shift]


def several(kind: str) -> list[list[Tensor]]:
    return [features(kind) for _ in range(6)]


every_batch = pytest.mark.parametrize("kind", ["random", "duplicates", "near", "constant", "far"])
