"""The statistics of softmax_similarity by the formulas on the whole matrix, and calls of the op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from pair_cases import (
    PAIRS,
    SYMMETRIC_PAIRS,
    Vectors,
    classes,
    labels,
    labels_and_groups,
    masks,
)
from torch import Tensor

from mmcore import functional

DENOMINATORS = ["all", "negatives", "positives"]
# With what becomes of the positives.
PAIRS_AND_POSITIVES = [
    *((pairs, "sum") for pairs in PAIRS),
    (labels, "log_sum_exp"),
    (labels_and_groups, "log_sum_exp"),
]
SYMMETRIC_PAIRS_AND_POSITIVES = [
    *((pairs, "sum") for pairs in SYMMETRIC_PAIRS),
    (classes, "log_sum_exp"),
]
STATISTICS = ["row_lse", "col_lse", "row_pos", "col_pos"]
GRADIENTS = ["grad_x", "grad_y", "grad_scale", "grad_bias", "grad_row_bias", "grad_col_bias"]


def unit_rows(rows: int, width: int) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def log_sum_exp(logits: Tensor, dim: int) -> Tensor:
    """As torch's, but for nothing at all −inf with a gradient of 0 instead of NaN."""
    is_empty = (logits == -torch.inf).all(dim, keepdim=True)
    result = logits.masked_fill(is_empty, 0).logsumexp(dim)
    return result.masked_fill(is_empty.squeeze(dim), -torch.inf)


def finite(value: Tensor) -> Tensor:
    """−inf, of which there is no error to speak, becomes 0."""
    return value.masked_fill(value == -torch.inf, 0)


def eager(
    vectors: Vectors, denominator: str, order: int = 1, positives: str = "sum"
) -> Callable[..., Sequence[Tensor]]:
    """The formulas on the whole matrix; `order` −1 sums the other way round."""

    def run(
        x: Tensor,
        y: Tensor,
        scale: Tensor,
        bias: Tensor | float = 0.0,
        row_bias: Tensor | None = None,
        col_bias: Tensor | None = None,
    ) -> Sequence[Tensor]:
        positive, excluded = masks(vectors, len(x), len(y))
        if order < 0:
            x, y = x.flip(1), y.flip(1)
        logits = scale * (x @ y.T) + bias
        if row_bias is not None and col_bias is not None:
            logits = logits + row_bias[:, None] + col_bias
        counted = {
            "all": ~excluded,
            "negatives": ~excluded & ~positive,
            "positives": positive,
        }[denominator]
        at_counted = logits.masked_fill(~counted, -torch.inf)
        sums = [log_sum_exp(at_counted, side) for side in (1, 0)]
        if positives == "log_sum_exp":
            at_positive = logits.masked_fill(~positive, -torch.inf)
            sums += [log_sum_exp(at_positive, side) for side in (1, 0)]
        else:
            sums += [(logits * positive).sum(side) for side in (1, 0)]
        return [finite(value) for value in sums]

    return run


def kernel(
    vectors: Vectors, denominator: str, columns: bool = True, positives: str = "sum"
) -> Callable[..., Sequence[Tensor]]:
    def run(x: Tensor, y: Tensor, *scalars: Tensor) -> Sequence[Tensor]:
        names = ("scale", "bias", "row_bias", "col_bias")
        settings: dict[str, Any] = dict(zip(names, scalars, strict=False))
        statistics = functional.softmax_similarity(
            x, y, denominator=denominator, positives=positives, columns=columns,
            **settings, **vectors,
        )  # fmt: skip
        return [finite(value) for value in statistics]

    return run


def scalars(dtype: torch.dtype = torch.float32, scale: float = 30.0) -> list[Tensor]:
    return [torch.tensor(value, dtype=dtype) for value in (scale, -3.0)]
