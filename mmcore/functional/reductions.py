"""From statistics of rows to a loss: means, weights, the dtype of the result."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional import arguments as check


def as_loss(value: Tensor, x: Tensor) -> Tensor:
    """float32 for features of 16 and 32 bits, float64 for float64."""
    return value if x.dtype == torch.float64 else value.float()


def mean_of(values: Tensor, is_there: Tensor) -> Tensor:
    """Mean of the values that are there; 0, with gradient 0, where none is."""
    total = torch.where(is_there, values, 0.0).sum()
    return total / is_there.sum().clamp(min=1)


def check_weight(name: str, weight: Tensor | None, x: Tensor) -> None:
    """One number for each row of `x`, none below 0 and not all 0.

    On a GPU the host does not see the numbers: weights that are all 0 give NaN there.
    """
    check.check_parameter(name, weight, x.shape[0], x)
    if weight is None or weight.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool((weight >= 0).all()):
        raise ValueError(f"{name} must be at least 0, got {weight.min().item()}")
    if not bool((weight > 0).any()):
        raise ValueError(f"{name} must be above 0 for at least one row, got 0 for all")


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Σ wᵢ·valueᵢ / Σ wᵢ; the mean without weights."""
    if weight is None:
        return values.mean()
    wide = weight.double()
    return (wide * values).sum() / wide.sum()


def check_fraction(name: str, value: float) -> None:
    """`value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_not_negative(name: str, value: float) -> None:
    """`value` is a finite number, 0 or above."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")
