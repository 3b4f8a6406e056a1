"""From statistics of rows to a loss: means, weights, the dtype of the result."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional.ranks import Ranks


def as_loss(value: Tensor, x: Tensor) -> Tensor:
    """float32 for features of 16 and 32 bits, float64 for float64."""
    return value if x.dtype == torch.float64 else value.float()


def log_of_count(count: int | Tensor, like: Tensor) -> Tensor:
    """log(count), 0-D float64; torch.compile compiles anew for each number that `math.log` gets."""
    if isinstance(count, Tensor):
        return count.double().log()
    return torch.full((), count, dtype=torch.float64, device=like.device).log()


def log_add_exp(one: Tensor, other: Tensor) -> Tensor:
    """log(eᵃ + eᵇ); −inf, with gradient 0, where both are."""
    is_nothing = torch.maximum(one, other) == -torch.inf
    one, other = (part.masked_fill(is_nothing, 0) for part in (one, other))
    return torch.logaddexp(one, other).masked_fill(is_nothing, -torch.inf)


def mean_of_rows(values: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Mean of the values, of all ranks where there are any."""
    if ranks is None:
        return values.mean()
    count = torch.full((), values.shape[0], dtype=values.dtype, device=values.device)
    return ratio(values.sum(), count, ranks)


def mean_of(values: Tensor, is_there: Tensor, ranks: Ranks | None = None) -> Tensor:
    """Mean of the values that are there; 0, with gradient 0, where none is."""
    total = torch.where(is_there, values, 0.0).sum()
    if ranks is None:
        return total / is_there.sum().clamp(min=1)
    total, count = ranks.total(torch.stack([total, is_there.sum().to(total)])).unbind()
    return total / count.clamp(min=1)


def weighted_mean(values: Tensor, weight: Tensor | None, ranks: Ranks | None = None) -> Tensor:
    """Σ wᵢ·valueᵢ / Σ wᵢ; the mean without weights."""
    if weight is None:
        return mean_of_rows(values, ranks)
    wide = weight.double()
    return ratio((wide * values).sum(), wide.sum(), ranks)


def ratio(total: Tensor, count: Tensor, ranks: Ranks | None) -> Tensor:
    """Of numbers of this process, or of their sums over ranks."""
    if ranks is not None:
        total, count = ranks.total(torch.stack([total, count])).unbind()
    return total / count


def mean_products(x: Tensor, y: Tensor, ranks: Ranks | None = None) -> Tensor:
    """mean_j ⟨x_i, y_j⟩ = ⟨x_i, mean(y)⟩ for each row of `x`, float64."""
    wide = torch.float64 if x.dtype == torch.float64 else torch.float32
    if ranks is None:
        mean = y.mean(0, dtype=torch.float64)
    else:
        count = torch.full((1,), y.shape[0], dtype=torch.float64, device=y.device)
        sums = ranks.shared(torch.cat([y.sum(0, dtype=torch.float64), count]))
        mean = sums[:-1] / sums[-1]
    # No matrix product, which autocast would round.
    return (x.to(wide) * mean.to(wide)).sum(1).double()
