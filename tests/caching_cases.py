"""Towers and rows for the tests of gradient caching in one process."""

from __future__ import annotations

import torch
from torch import Tensor, nn

ROWS, CHUNK = 10, 4  # three chunks: of 4, 3 and 3 rows
EXACT = {"rtol": 0.0, "atol": 1e-12}


def tower(seed: int = 1, dropout: float = 0.0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    torch.manual_seed(seed)
    layers = (nn.Linear(6, 9), nn.Dropout(dropout), nn.GELU(), nn.Linear(9, 5), nn.Dropout(dropout))
    return nn.Sequential(*layers).to(dtype)


def rows(seed: int = 2, count: int = ROWS, dtype: torch.dtype = torch.float64) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(count, 6, dtype=torch.float64).to(dtype)


def gradients(module: nn.Module) -> list[Tensor | None]:
    return [parameter.grad for parameter in module.parameters()]
