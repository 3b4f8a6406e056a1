"""The contracts between ops and backends: what goes into a family, and what comes out.

A family's op takes the fields of its inputs in this order, and so do the compiled module and the
kernels. Its backward takes besides what the forward found, the gradients of that, and which
gradients are wanted; it returns these in the order of its `Wanted`, with None where it has none.
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
    multiplies_bfloat16: bool = False
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
    """Which gradients are; that of the bias has a closed form, which no backend computes."""

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
    """Which gradients are."""

    x: bool
    y: bool
    scale: bool
    bias: bool


class PrefixInputs(NamedTuple):
    """Similarity matrices of prefixes of the width, with targets as positives."""

    x: Tensor  # (N, D)
    y: Tensor  # (M, D)
    scale: Tensor  # 0-D
    ends: Sequence[int]  # of K prefixes, ascending
    eps: float
    target: Tensor  # (N,)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (M,)
    multiplies_bfloat16: bool = False

    def matrix(self, x: Tensor, y: Tensor) -> SimilarityInputs:
        """The similarity matrix of two normalised prefixes."""
        return SimilarityInputs(
            x=x, y=y, scale=self.scale, bias=None, row_bias=None, col_bias=None,
            target=self.target, row_label=None, col_label=None, row_group=self.row_group,
            col_group=self.col_group, multiplies_bfloat16=self.multiplies_bfloat16,
        )  # fmt: skip


class PrefixStatistics(NamedTuple):
    """What prefix_similarity finds; float64, but for what it keeps."""

    row_lse: Tensor  # (K, N)
    col_lse: Tensor  # (K, M)
    row_pos: Tensor  # (K, N)
    kept: Tensor  # float32: the backend's, for the backward
    is_apart: Tensor  # (K,) booleans


class PrefixUpstream(NamedTuple):
    """Gradients of the statistics."""

    row_lse: Tensor
    col_lse: Tensor
    row_pos: Tensor


class PrefixWanted(NamedTuple):
    """Which gradients are."""

    x: bool
    y: bool
    scale: bool


class ProjectionInputs(NamedTuple):
    """One projection."""

    x: Tensor  # (N, K)
    weight: Tensor  # (D, K)
    bias: Tensor | None  # (D,)
    norm: str
    norm_weight: Tensor | None  # (K,)
    norm_bias: Tensor | None  # (K,)
    norm_eps: float
    normalize: bool
    eps: float
    multiplies_bfloat16: bool = False

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that a gradient may be wanted of."""
        return self.x, self.weight, self.bias, self.norm_weight, self.norm_bias


class Projected(NamedTuple):
    """What project returns; what does not apply is empty."""

    output: Tensor  # (N, D), in the dtype of x
    mean: Tensor  # (N,) of a row of x, layer norm only
    inverse_std: Tensor  # (N,) 1/√(variance + norm_eps)
    inverse_norm: Tensor  # (N,) 1 / max(‖z‖, eps)


class ProjectionWanted(NamedTuple):
    """Which gradients are."""

    x: bool
    weight: bool
    bias: bool
    norm_weight: bool
    norm_bias: bool


class Normalized(NamedTuple):
    """What l2_normalize returns."""

    y: Tensor  # (N, D), in the dtype of x
    inverse_norm: Tensor  # (N,)


class GramInputs(NamedTuple):
    """Sums over rows of products of columns of one side or two, and which of them are wanted."""

    x: Tensor
    y: Tensor | None
    x_mean: Tensor | None
    y_mean: Tensor | None
    parts: Sequence[bool]


class DistillationInputs(NamedTuple):
    """A student's similarity matrix and its teacher's; the diagonal is positive in both."""

    x: Tensor  # (N, D)
    y: Tensor  # (N, D)
    scale: Tensor  # 0-D
    teacher_x: Tensor  # (N, E)
    teacher_y: Tensor  # (N, E)
    teacher_scale: Tensor  # 0-D
    multiplies_bfloat16: bool = False


class DistillationStatistics(NamedTuple):
    """What distillation finds: float64, (N,)."""

    row_lse: Tensor
    col_lse: Tensor
    positive: Tensor
    row_cross: Tensor
    col_cross: Tensor
    teacher_row_lse: Tensor
    teacher_col_lse: Tensor
    is_apart: Tensor  # 0-D boolean: whether the reference had to serve


class DistillationUpstream(NamedTuple):
    """Gradients of the statistics, of which the teacher's have none."""

    row_lse: Tensor
    col_lse: Tensor
    positive: Tensor
    row_cross: Tensor
    col_cross: Tensor


class DistillationWanted(NamedTuple):
    """Which gradients are."""

    x: bool
    y: bool
    scale: bool


class NegativesInputs(NamedTuple):
    """Rows and columns whose hardest negatives are searched; the diagonal is positive."""

    x: Tensor  # (N, D)
    y: Tensor  # (N, D)
    row_group: Tensor | None  # (N,)
    col_group: Tensor | None  # (N,)
    multiplies_bfloat16: bool = False

    def matrix(self) -> SimilarityInputs:
        """The similarity matrix, its scale 1."""
        rows, device = self.x.shape[0], self.x.device
        return SimilarityInputs(
            x=self.x, y=self.y, scale=torch.ones((), dtype=torch.float64, device=device),
            bias=None, row_bias=None, col_bias=None, target=torch.arange(rows, device=device),
            row_label=None, col_label=None, row_group=self.row_group, col_group=self.col_group,
            denominator="negatives", multiplies_bfloat16=self.multiplies_bfloat16,
        )  # fmt: skip


def as_inputs(
    values: Sequence[Tensor | None], likes: Sequence[Tensor | None], wanted: Sequence[bool]
) -> tuple[Tensor, ...]:
    """Each gradient rounded to the dtype of its input; empty where it is not wanted."""
    nothing = likes[0]
    assert nothing is not None
    return tuple(
        nothing.new_empty(0)
        if like is None or value is None or not is_wanted
        else value.to(like.dtype).reshape(like.shape)
        for value, like, is_wanted in zip(values, likes, wanted, strict=True)
    )
