"""The dtype of the arithmetic behind a dtype of storage."""

from __future__ import annotations

import torch


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float32 and every 16-bit dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
