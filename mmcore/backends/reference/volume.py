"""volume in plain torch, which serves every device; the formulas: ops/volume.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends.inputs import arithmetic_dtype
from mmcore.backends.reference.gram_schmidt import orthonormalise, orthonormalise_backward
from mmcore.backends.reference.log_sum_exp import log_sum_exp, weighted_softmax

# Rows and columns of a tile. Each of its intermediate results fills 4 MiB of float32, in which
# caches help, or 64 MiB, where launches should be few.
CPU_TILE, GPU_TILE = 1024, 4096


class VolumeInputs(NamedTuple):
    """An anchor, and the rows of other modalities that its rows span volumes with."""

    anchor: Tensor  # (N, D)
    others: Sequence[Tensor]  # each (N, D)
    scale: Tensor  # 0-D


class VolumeStatistics(NamedTuple):
    """What volume finds, float64."""

    row_lse: Tensor  # (N,)
    col_lse: Tensor  # (N,)
    own: Tensor  # (N,) volumes of the rows i = j
    total: Tensor  # 0-D


class VolumeWanted(NamedTuple):
    """Which gradients are wanted."""

    anchor: bool
    others: Sequence[bool]
    scale: bool


class Volumes(NamedTuple):
    """A tile: v for each of the others, d and s."""

    products: list[Tensor]
    distance: Tensor
    logits: Tensor


class Basis(NamedTuple):
    """Of what the others' rows of some columns span, and their own volume."""

    directions: Sequence[Tensor]  # in the dtype of the arithmetic
    volume: Tensor  # float64

    def volumes(self, part: Tensor, scale: Tensor) -> Volumes:
        """Those with some rows of the anchor."""
        products = [part @ directions.T for directions in self.directions]
        square = part.square().sum(1, keepdim=True).expand(products[0].shape).clone()
        for product in products:
            square.addcmul_(product, product, value=-1)
        distance = square.clamp_(min=0).sqrt_()
        return Volumes(products, distance, distance * -(scale * self.volume).to(distance.dtype))

    def add_gradients(
        self,
        part: Tensor,
        volumes: Volumes,
        gradient: Tensor,
        grad_part: Tensor | None,
        grad_directions: Sequence[Tensor] | None,
    ) -> None:
        """`gradient` is −scale·volume_j·G_ij, and becomes h_ij."""
        slope = gradient.div_(volumes.distance).masked_fill_(volumes.distance == 0, 0)
        if grad_part is not None:
            grad_part.addcmul_(slope.sum(1, keepdim=True), part)
        for k, product in enumerate(volumes.products):
            grad_product = product.mul_(slope)
            if grad_part is not None:
                grad_part.addmm_(grad_product, self.directions[k], alpha=-1)
            if grad_directions is not None:
                grad_directions[k].addmm_(grad_product.T, part, alpha=-1)


class Span:
    """What the others' rows of a tile of columns span, and their volumes with the anchor's."""

    def __init__(self, anchor: Tensor, others: Sequence[Tensor], columns: slice) -> None:
        self.rows = [z[columns].double() for z in (*others, anchor)]
        self.directions, self.lengths = orthonormalise(self.rows)
        wide = arithmetic_dtype(anchor.dtype)
        volume = torch.cat(self.lengths[:-1], 1).prod(1)
        self.basis = Basis([q.to(wide) for q in self.directions[:-1]], volume)
        self.own = volume * self.lengths[-1][:, 0]

    def backward(
        self, grad_basis: Sequence[Tensor] | None, grad_volume: Tensor, grad_own: Tensor
    ) -> list[Tensor]:
        """The gradients of the others' rows, then of the anchor's."""
        *lengths, distance = self.lengths
        grad_directions = [torch.zeros_like(q) for q in self.directions]
        for total, part in zip(grad_directions, grad_basis or (), strict=False):
            total += part
        grad_volume = grad_volume[:, None] + grad_own[:, None] * distance
        grad_lengths = []
        for k in range(len(lengths)):
            rest = [*lengths[:k], *lengths[k + 1 :], torch.ones_like(distance)]
            grad_lengths.append(grad_volume * torch.cat(rest, 1).prod(1, keepdim=True))
        return orthonormalise_backward(
            self.rows,
            self.directions,
            self.lengths,
            grad_directions,
            [*grad_lengths, (grad_own * self.basis.volume)[:, None]],
        )


def forward(inputs: VolumeInputs) -> VolumeStatistics:
    anchor, others, scale = inputs
    row_lse = anchor.new_full(anchor.shape[:1], -torch.inf, dtype=torch.float64)
    col_lse, own, total = row_lse.clone(), torch.empty_like(row_lse), row_lse.new_zeros(())
    wide = anchor.to(arithmetic_dtype(anchor.dtype))
    for columns in tiles(anchor):
        span = Span(anchor, others, columns)
        own[columns] = span.own
        for rows in tiles(anchor):
            logits = span.basis.volumes(wide[rows], scale).logits
            total += logits.sum(dtype=torch.float64)
            if rows == columns:
                total -= logits.diagonal().sum(dtype=torch.float64)
                logits.diagonal().fill_(-torch.inf)
            row_lse[rows] = torch.logaddexp(row_lse[rows], log_sum_exp(logits, 1))
            col_lse[columns] = torch.logaddexp(col_lse[columns], log_sum_exp(logits, 0))
    return VolumeStatistics(row_lse, col_lse, own, total)


def backward(
    inputs: VolumeInputs, statistics: VolumeStatistics, upstream: VolumeStatistics,
    wanted: VolumeWanted, rounds: bool,
) -> tuple[Tensor | None, list[Tensor | None], Tensor]:  # fmt: skip
    anchor, others, scale = inputs
    wide = anchor.to(arithmetic_dtype(anchor.dtype))
    gradients = [
        z.new_zeros(z.shape, dtype=wide.dtype) if is_wanted else None
        for z, is_wanted in zip((*others, wide), (*wanted.others, wanted.anchor), strict=True)
    ]
    grad_anchor, grad_scale = gradients[-1], torch.zeros_like(upstream.total)
    for columns in tiles(anchor):
        span = Span(anchor, others, columns)
        basis, grad_basis = span.basis, None
        if any(wanted.others):
            grad_basis = [torch.zeros_like(q) for q in basis.directions]
        grad_logits = torch.zeros_like(basis.volume)  # Σ_i G_ij·d_ij
        for rows in tiles(anchor):
            volumes = basis.volumes(wide[rows], scale)
            gradient = gradient_of(volumes.logits, rows, columns, statistics, upstream)
            if rows == columns:
                gradient.diagonal().zero_()
            grad_logits += (gradient * volumes.distance).sum(0, dtype=torch.float64)
            gradient *= -(scale * basis.volume).to(gradient.dtype)
            grad_part = None if grad_anchor is None else grad_anchor[rows]
            basis.add_gradients(wide[rows], volumes, gradient, grad_part, grad_basis)
        grad_scale -= (grad_logits * basis.volume).sum()
        grad_rows = span.backward(grad_basis, -scale * grad_logits, upstream.own[columns])
        for total, part in zip(gradients, grad_rows, strict=True):
            if total is not None:
                total[columns] += part
    *grad_others, grad_anchor = gradients
    return grad_anchor, grad_others, grad_scale


def gradient_of(
    logits: Tensor,
    rows: slice,
    columns: slice,
    statistics: VolumeStatistics,
    upstream: VolumeStatistics,
) -> Tensor:
    """G of a tile, where no pair is a positive."""
    row_lse, col_lse = statistics.row_lse[rows, None], statistics.col_lse[columns]
    gradient = weighted_softmax(logits, row_lse, upstream.row_lse[rows, None])
    gradient += weighted_softmax(logits, col_lse, upstream.col_lse[columns])
    return gradient.add_(upstream.total.to(gradient.dtype))


def tiles(anchor: Tensor) -> Iterator[slice]:
    """Ranges of its rows."""
    size = CPU_TILE if anchor.device.type == "cpu" else GPU_TILE
    for start in range(0, anchor.shape[0], size):
        yield slice(start, min(start + size, anchor.shape[0]))
