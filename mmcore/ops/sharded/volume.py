"""Statistics of the volumes of rows that several ranks hold.

    s_ij, row_lse, col_lse, own, total: ops/volume.py, i this rank's rows and j those of all ranks

A rank returns the statistics of its own rows and columns; `total` is its share, over its own rows.
It forms the basis of what its own rows of the other modalities span, and the bases go to all ranks
in slabs (slabs.py), as do their gradients to their owners, which alone go on to the rows: in rank
order, the same bits each time.

Never stored: the volumes, or the rows or bases of all ranks at once. Loop order: a slab of columns,
of it a tile; for each all tiles of rows. Precision: as ops/volume.py.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore import backends
from mmcore.backends.inputs import arithmetic_dtype
from mmcore.backends.reference.log_sum_exp import log_sum_exp
from mmcore.backends.reference.volume import (
    Basis,
    Span,
    VolumeStatistics,
    VolumeWanted,
    gradient_of,
    tiles,
)
from mmcore.ops.family import Family
from mmcore.ops.flops import Product
from mmcore.ops.sharded import header
from mmcore.ops.sharded.collectives import in_order, offsets
from mmcore.ops.sharded.matrix import FeatureGradients
from mmcore.ops.sharded.slabs import Shards, Slab, slabs

FORWARD, BACKWARD = "volume, forward", "volume, backward"


class ShardedVolumeInputs(NamedTuple):
    """This rank's rows of an anchor and of other modalities, and who holds the rows."""

    anchor: Tensor  # (n, D)
    others: Sequence[Tensor]  # each (n, D)
    scale: Tensor  # 0-D
    agreed: Tensor  # (W, 5), by header.py
    group: str

    def spans(self) -> Iterator[tuple[slice, Span]]:
        """Of this rank's rows, a tile at a time."""
        for rows in tiles(self.anchor):
            yield rows, Span(self.anchor, self.others, rows)


class _Tile(NamedTuple):
    """Some rows of this rank against some columns of a slab."""

    rows: slice
    columns: slice
    numbers: Tensor  # of the columns among all
    own: Tensor  # which pairs are positives
    basis: Basis


class Run:
    """The two halves of the op; the same plain torch on every backend."""

    def __init__(self, backend: str) -> None:
        pass

    def forward(self, inputs: ShardedVolumeInputs) -> VolumeStatistics:
        shards = Shards.of(inputs.agreed, inputs.group)
        basis, volume, own = _of_own_rows(inputs)
        wide, every_volume = inputs.anchor.to(basis.dtype), _gathered(volume, shards, FORWARD)
        row_lse = torch.full_like(own, -torch.inf)
        of_columns, total = torch.full_like(every_volume, -torch.inf), own.new_zeros(())
        for slab in slabs(basis, shards, FORWARD):
            for tile in _tiles(inputs, shards, slab, every_volume):
                logits = tile.basis.volumes(wide[tile.rows], inputs.scale).logits
                total += logits.masked_fill(tile.own, 0).sum(dtype=torch.float64)
                logits.masked_fill_(tile.own, -torch.inf)
                for lse, place, dim in ((row_lse, tile.rows, 1), (of_columns, tile.numbers, 0)):
                    lse[place] = torch.logaddexp(lse[place], log_sum_exp(logits, dim))
        col_lse = torch.full_like(own, -torch.inf)
        for part in shards.to_owners(of_columns, FORWARD):
            col_lse = torch.logaddexp(col_lse, part)
        return VolumeStatistics(row_lse, col_lse, own, total)

    def backward(
        self, inputs: ShardedVolumeInputs, statistics: VolumeStatistics,
        upstream: VolumeStatistics, wanted: VolumeWanted, rounds: bool,
    ) -> tuple[Tensor | None, list[Tensor | None], Tensor]:  # fmt: skip
        shards, has_others = Shards.of(inputs.agreed, inputs.group), any(wanted.others)
        header.same_step(inputs.anchor, BACKWARD, inputs.group)
        basis, volume, _ = _of_own_rows(inputs)
        numbers = torch.stack((volume, statistics.col_lse, upstream.col_lse), 1)
        every_volume, *of_columns = _gathered(numbers, shards, BACKWARD).unbind(1)
        features = FeatureGradients(
            inputs.anchor, basis, wanted.anchor, has_others, shards, BACKWARD
        )
        grad_logits = torch.zeros_like(every_volume)  # Σ_i G_ij·d_ij
        for slab in slabs(basis, shards, BACKWARD, beside=features.bytes_of_column):
            grad_basis = torch.zeros_like(slab.rows) if has_others else None
            for tile in _tiles(inputs, shards, slab, every_volume):
                lse, grad_lse = (part[tile.numbers] for part in of_columns)
                self._add(
                    inputs, tile, statistics._replace(col_lse=lse),
                    upstream._replace(col_lse=grad_lse), features, grad_basis, grad_logits,
                )  # fmt: skip
            features.add(None, grad_basis, slab)
        grad_scale = -(grad_logits * every_volume).sum()
        anchor, of_basis = features.both(False)
        grad_volume = None
        if has_others:
            grad_volume = -inputs.scale * in_order(shards.to_owners(grad_logits, BACKWARD))
        others = _to_rows(inputs, of_basis, grad_volume, upstream.own, anchor, wanted)
        return anchor, others, grad_scale

    def _add(
        self, inputs: ShardedVolumeInputs, tile: _Tile, statistics: VolumeStatistics,
        upstream: VolumeStatistics, features: FeatureGradients, grad_basis: Tensor | None,
        grad_logits: Tensor,
    ) -> None:  # fmt: skip
        """What a tile adds to the gradients of the anchor's rows, of its basis and of logits."""
        part, basis = inputs.anchor[tile.rows].to(features.x.dtype), tile.basis
        volumes = basis.volumes(part, inputs.scale)
        gradient = gradient_of(volumes.logits, tile.rows, slice(None), statistics, upstream)
        gradient.masked_fill_(tile.own, 0)
        grad_logits[tile.numbers] += (gradient * volumes.distance).sum(0, dtype=torch.float64)
        gradient *= -(inputs.scale * basis.volume).to(gradient.dtype)
        grad_part = features.x[tile.rows] if features.has_x else None
        directions = None
        if grad_basis is not None:
            directions = grad_basis[tile.columns].split(inputs.anchor.shape[1], 1)
        basis.add_gradients(part, volumes, gradient, grad_part, directions)


def _of_own_rows(inputs: ShardedVolumeInputs) -> tuple[Tensor, Tensor, Tensor]:
    """The bases of this rank's columns side by side, their volumes, and those with the anchor."""
    anchor, (rows, width) = inputs.anchor, inputs.anchor.shape
    basis = anchor.new_empty(
        (rows, width * len(inputs.others)), dtype=arithmetic_dtype(anchor.dtype)
    )
    volume, own = (anchor.new_empty(rows, dtype=torch.float64) for _ in range(2))
    for place, span in inputs.spans():
        torch.cat(list(span.basis.directions), 1, out=basis[place])
        volume[place], own[place] = span.basis.volume, span.own
    return basis, volume, own


def _to_rows(
    inputs: ShardedVolumeInputs, grad_basis: Tensor | None, grad_volume: Tensor | None,
    grad_own: Tensor, grad_anchor: Tensor | None, wanted: VolumeWanted,
) -> list[Tensor | None]:  # fmt: skip
    """Those of the other modalities' rows, from those of their bases; the anchor's are added."""
    anchor, width = inputs.anchor, inputs.anchor.shape[1]
    zeros = torch.zeros(anchor.shape, dtype=arithmetic_dtype(anchor.dtype), device=anchor.device)
    others = [zeros.clone() if is_wanted else None for is_wanted in wanted.others]
    for rows, span in inputs.spans():
        directions = None if grad_basis is None else grad_basis[rows].split(width, 1)
        of_volume = torch.zeros_like(span.own) if grad_volume is None else grad_volume[rows]
        found = span.backward(directions, of_volume, grad_own[rows])
        for total, part in zip((*others, grad_anchor), found, strict=True):
            if total is not None:
                total[rows] += part
    return others


def _tiles(
    inputs: ShardedVolumeInputs, shards: Shards, slab: Slab, volume: Tensor
) -> Iterator[_Tile]:
    """`volume` has those of all columns."""
    first, width = offsets(shards.rows)[shards.group.rank], inputs.anchor.shape[1]
    row_numbers = torch.arange(inputs.anchor.shape[0], device=volume.device) + first
    every = torch.arange(len(volume), device=volume.device)
    numbers = every if slab.columns is None else slab.columns
    for columns in tiles(slab.rows):
        at = numbers[columns]
        basis = Basis(slab.rows[columns].split(width, 1), volume[at])
        for rows in tiles(inputs.anchor):
            yield _Tile(rows, columns, at, row_numbers[rows, None] == at, basis)


def _gathered(values: Tensor, shards: Shards, what: str) -> Tensor:
    found = shards.gathered(values, what)
    assert found is not None
    return found


def fake(inputs: ShardedVolumeInputs) -> VolumeStatistics:
    rows = inputs.anchor.shape[:1]
    row_lse, col_lse, own = (inputs.anchor.new_empty(rows, dtype=torch.float64) for _ in range(3))
    return VolumeStatistics(row_lse, col_lse, own, row_lse.new_empty(()))


def products(inputs: ShardedVolumeInputs, wanted: VolumeWanted) -> list[Product]:
    """This rank's rows of the anchor by those of each other modality, if all ranks have as many."""
    size = inputs.anchor.numel() * inputs.anchor.shape[0] * inputs.agreed.shape[0]
    return [Product(size, wanted.anchor, other) for other in wanted.others]


family = Family(
    "sharded_volume", inputs=ShardedVolumeInputs, results=VolumeStatistics,
    upstream=VolumeStatistics, wanted=VolumeWanted, fake=fake,
    reads=lambda inputs: ("row_lse", "col_lse"), products=products, serves=Run,
)  # fmt: skip


def call(inputs: ShardedVolumeInputs, *, backend: str | None) -> VolumeStatistics:
    """The statistics, differentiable; the inputs are checked, and agreed on."""
    return family(inputs, backend=backends.selected(backend))
