"""A similarity matrix whose rows and columns several ranks hold: inputs, blocks, gradients."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs, arithmetic_dtype
from mmcore.ops.flops import Product
from mmcore.ops.sharded.returns import Returns, adding
from mmcore.ops.sharded.slabs import Shards, Slab


class ShardedInputs(NamedTuple):
    """`SimilarityInputs`, and who holds the rows."""

    x: Tensor  # (n, D)
    y: Tensor | None  # (m, D); None where it is x
    scale: Tensor
    bias: Tensor | None
    row_bias: Tensor | None
    col_bias: Tensor | None
    target: Tensor | None  # (n,) numbers among the columns of all ranks
    row_label: Tensor | None
    col_label: Tensor | None
    row_group: Tensor | None
    col_group: Tensor | None
    denominator: str
    has_columns: bool
    precision: str
    positives: str
    agreed: Tensor  # (W, 5), by header.py: rows of x and of y, workspace, exchange, machine
    group: str  # the process group's name

    def matrix(self) -> SimilarityInputs:
        """This rank's rows and columns; y is spelled out."""
        inputs = SimilarityInputs(*self[:15])
        return inputs.spelled_out()._replace(y=inputs.keys)

    @property
    def is_half_enough(self) -> bool:
        """Whether (j, i) has the logit of (i, j), and their labels and groups say the same."""
        return self.y is None and not self.has_columns and self.target is None

    def product(self, x: bool, y: bool) -> Product:
        """This rank's rows against the columns of all ranks, where every rank has as many."""
        keys, is_symmetric = self.x if self.y is None else self.y, self.y is None
        size = self.x.numel() * keys.shape[0] * self.agreed.shape[0]
        return Product(size, x, x if is_symmetric else y)


class Columns(NamedTuple):
    """The columns' vectors of all ranks."""

    col_bias: Tensor | None
    col_label: Tensor | None
    col_group: Tensor | None

    @staticmethod
    def of(inputs: SimilarityInputs, shards: Shards, what: str) -> Columns:
        vectors = inputs.col_bias, inputs.col_label, inputs.col_group
        return Columns(*(shards.gathered(vector, what) for vector in vectors))

    def at(self, slab: Slab, inputs: SimilarityInputs, columns: int) -> SimilarityInputs:
        """This rank's rows against the slab's columns."""
        return inputs._replace(
            y=slab.rows, target=slab.target(inputs.target, columns),
            col_bias=slab.of(self.col_bias), col_label=slab.of(self.col_label),
            col_group=slab.of(self.col_group),
        )  # fmt: skip


class FeatureGradients:
    """Gradients of this rank's rows of x and of y; those of y come from every rank."""

    def __init__(
        self, x: Tensor, y: Tensor, has_x: bool, has_y: bool, shards: Shards, what: str
    ) -> None:
        self.has_x, self.has_y = has_x, has_y or (has_x and y is x)
        self.x, self.y = (
            side.new_zeros(side.shape if is_wanted else (0,), dtype=arithmetic_dtype(side.dtype))
            for side, is_wanted in ((x, self.has_x), (y, self.has_y))
        )
        self.returns = Returns(adding(self.y), shards.group, what)

    @property
    def width(self) -> int:
        """Of the rows that go back; 0 where none do."""
        return self.y.shape[1] if self.has_y else 0

    def add(self, x: Tensor | None, y: Tensor | None, slab: Slab) -> None:
        """Those of a slab; None where this rank has no rows, or they are not wanted."""
        if self.has_x and x is not None:
            self.x += x
        if self.has_y:
            sent = self.y.new_zeros(slab.rows.shape) if y is None else y.to(self.y.dtype)
            self.returns.send(sent, slab.own, slab.legs)

    def both(self, is_symmetric: bool) -> tuple[Tensor | None, Tensor | None]:
        """Of x and of y; of x alone where y is x."""
        self.returns.finish()
        if is_symmetric:
            return (self.x + self.y if self.has_x else None), None
        return self.x if self.has_x else None, self.y if self.has_y else None
