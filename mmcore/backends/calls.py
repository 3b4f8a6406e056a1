"""The arguments of the ops by name, as every backend reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor


class SimilarityCall(NamedTuple):
    """One similarity matrix; y is None where it is x, as are the columns' vectors then."""

    x: Tensor
    y: Tensor | None
    scale: Tensor
    bias: Tensor | None
    row_bias: Tensor | None
    col_bias: Tensor | None
    target: Tensor | None
    row_label: Tensor | None
    col_label: Tensor | None
    row_group: Tensor | None
    col_group: Tensor | None
    denominator: str
    has_columns: bool
    multiplies_bfloat16: bool
    positives: str = "sum"

    def of_positives(self) -> SimilarityCall:
        """The matrix of which positives alone are counted."""
        return self._replace(denominator="positives", positives="sum")


class ProjectionCall(NamedTuple):
    """One projection."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    norm: str
    norm_weight: Tensor | None
    norm_bias: Tensor | None
    norm_eps: float
    normalize: bool
    eps: float
    multiplies_bfloat16: bool

    def tensors(self) -> tuple[Tensor | None, ...]:
        """All that a gradient may be wanted of."""
        return self.x, self.weight, self.bias, self.norm_weight, self.norm_bias


class GramCall(NamedTuple):
    """Sums over rows of products of columns of one side or two, and which of them are wanted."""

    x: Tensor
    y: Tensor | None
    x_mean: Tensor | None
    y_mean: Tensor | None
    parts: Sequence[bool]


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
