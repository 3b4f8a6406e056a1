"""From statistics of rows to a loss: means, weights, the dtype of the result."""

from __future__ import annotations

import torch
from torch import Tensor


def as_loss(value: Tensor, x: Tensor) -> Tensor:
    """float32 for features of 16 and 32 bits, float64 for float64."""
    return value if x.dtype == torch.float64 else value.float()


def log_of_count(count: int, like: Tensor) -> Tensor:
    """log(count), 0-D float64; torch.compile compiles anew for each number that `math.log` gets."""
    return torch.full((), count, dtype=torch.float64, device=like.device).log()


def log_add_exp(one: Tensor, other: Tensor) -> Tensor:
    """log(eᵃ + eᵇ); −inf, with gradient 0, where both are."""
    is_nothing = torch.maximum(one, other) == -torch.inf
    one, other = (part.masked_fill(is_nothing, 0) for part in (one, other))
    return torch.logaddexp(one, other).masked_fill(is_nothing, -torch.inf)


def mean_of(values: Tensor, is_there: Tensor) -> Tensor:
    """Mean of the values that are there; 0, with gradient 0, where none is."""
    total = torch.where(is_there, values, 0.0).sum()
    return total / is_there.sum().clamp(min=1)


def weighted_mean(values: Tensor, weight: Tensor | None) -> Tensor:
    """Σ wᵢ·valueᵢ / Σ wᵢ; the mean without weights."""
    if weight is None:
        return values.mean()
    wide = weight.double()
    return (wide * values).sum() / wide.sum()


def mean_products(x: Tensor, y: Tensor) -> Tensor:
    """mean_j ⟨x_i, y_j⟩ = ⟨x_i, mean(y)⟩ for each row of `x`, float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    # No matrix product, which autocast would round.
    return (x.to(wide) * y.mean(0, dtype=torch.float64).to(wide)).sum(1).double()
