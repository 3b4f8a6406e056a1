"""A similarity matrix whose rows and columns several ranks hold: inputs, blocks, gradients."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmcore.backends.inputs import SimilarityInputs, arithmetic_dtype
from mmcore.ops.flops import Product
from mmcore.ops.sharded.nodes import Leg
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


class Place(NamedTuple):
    """Columns of a block: how many, and how what is found of them goes to their owners."""

    size: int
    own: slice  # which of this rank's columns other ranks have meanwhile
    legs: list[Leg]  # none where the columns are this rank's rows


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
        self.ranks_of_machine = shards.nodes.size
        self.returns = Returns(adding(self.y), shards.group, what)

    @property
    def bytes_of_column(self) -> int:
        """Gradients that are computed, sent, received; and sent and received between machines."""
        of_one = self.y.shape[1] * self.y.element_size() if self.has_y else 0
        return 3 * of_one + -(-2 * of_one // self.ranks_of_machine)

    def add(self, x: Tensor | None, y: Tensor | None, slab: Slab) -> None:
        """Those of a slab; None where this rank has no rows, or they are not wanted."""
        self.add_some(x, y, slice(None), Place(len(slab.rows), slab.own, slab.legs))

    def add_some(self, x: Tensor | None, y: Tensor | None, rows: slice, place: Place) -> None:
        """Those of some rows of this rank and of some columns."""
        if self.has_x and x is not None:
            self.x[rows] += x.view_as(self.x[rows])
        if self.has_y and place.legs:
            shape = (place.size, self.y.shape[1])
            sent = self.y.new_zeros(shape) if y is None else y.view(shape).to(self.y.dtype)
            self.returns.send(sent, place.own, place.legs)

    def both(self, is_symmetric: bool) -> tuple[Tensor | None, Tensor | None]:
        """Of x and of y; of x alone where y is x."""
        self.returns.finish()
        if is_symmetric:
            return (self.x + self.y if self.has_x else None), None
        return self.x if self.has_x else None, self.y if self.has_y else None
