"""What goes into the families of the similarity matrix, and what comes out of them.

A family's op takes the fields of its inputs in this order, and so do the compiled module and the
kernels. Its backward also takes what the forward found, the gradients of that, and which gradients
are wanted. It returns these in the order of its `Wanted`, with None for one that it lacks. Every
other family has such tuples in its reference file.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

# One for each field of a family's `Wanted`.
Gradients: TypeAlias = Sequence[Tensor | None]


class SimilarityInputs(NamedTuple):
    """One similarity matrix. y is None where it is x, and the columns' vectors are None then."""

    x: Tensor  # (N, D)
    y: Tensor | None  # (M, D)
    scale: Tensor  # 0-D
    bias: Tensor | None  # 0-D
    row_bias: Tensor | None  # (N,)
    col_bias: Tensor | None  # (M,)
    target: Tensor | None  # (N,) integers, as all vectors below
    row_label: Tensor | None  # (N,)
    col_label: Tensor | None  # (M,)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (M,)
    denominator: str = "all"
    has_columns: bool = True
    precision: str = "highest"  # of products, or "high", "medium": ops/precision.py
    positives: str = "sum"

    @property
    def keys(self) -> Tensor:
        """y, which may be x."""
        return self.x if self.y is None else self.y

    @property
    def is_half_enough(self) -> bool:
        """True if y is x and only rows are wanted: (j, i) has the logit of (i, j)."""
        return self.y is None and not self.has_columns

    def spelled_out(self) -> SimilarityInputs:
        """With the columns' vectors filled in where y is x."""
        if self.y is not None:
            return self
        return self._replace(
            col_bias=self.row_bias, col_label=self.row_label, col_group=self.row_group
        )

    def among_positives(self) -> SimilarityInputs:
        """The matrix of which positives alone are counted."""
        return self._replace(denominator="positives", positives="sum")


class SoftmaxStatistics(NamedTuple):
    """What softmax_similarity finds; float64, but for what it keeps."""

    row_lse: Tensor  # (N,)
    col_lse: Tensor  # (M,), or empty without columns
    row_pos: Tensor  # (N,)
    col_pos: Tensor  # (M,), or empty
    kept: Tensor  # float32: the backend's, for the backward


class SoftmaxUpstream(NamedTuple):
    """Gradients of the statistics."""

    row_lse: Tensor
    col_lse: Tensor
    row_pos: Tensor
    col_pos: Tensor


class SoftmaxWanted(NamedTuple):
    """Which gradients are wanted; that of the bias has a closed form, which no backend computes."""

    x: bool
    y: bool
    scale: bool
    row_bias: bool = False
    col_bias: bool = False


class SigmoidSums(NamedTuple):
    """What sigmoid_similarity finds."""

    total: Tensor  # 0-D float64
    positive: Tensor  # 0-D float64
    kept: Tensor  # float32: gradients of x and y, flat, or empty
    kept_sums: Tensor  # (2,) float64: gradients of scale and bias, or empty


class SigmoidUpstream(NamedTuple):
    """Gradients of the sums."""

    total: Tensor
    positive: Tensor


class SigmoidWanted(NamedTuple):
    """Which gradients are wanted."""

    x: bool
    y: bool
    scale: bool
    bias: bool


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """float64 for float64, float32 for float32 and every 16-bit dtype."""
    return torch.float64 if dtype == torch.float64 else torch.float32
