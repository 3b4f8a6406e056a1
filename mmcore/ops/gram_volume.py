"""Statistics of the volumes that an anchor's row spans with the rows of other modalities.

    s_ij = −scale·volume_j·d_ij    d_ij = sqrt(max(0, ‖a_i‖² − Σ_k v_ijk²))    v_ijk = ⟨a_i, q_kj⟩
    row_lse_i = log Σ_{j ≠ i} exp s_ij   col_lse_j = log Σ_{i ≠ j} exp s_ij   total = Σ_{i ≠ j} s_ij

q_1j, q_2j, … are an orthonormal basis of what the other modalities' rows j span, and volume_j is
their own volume: d_ij is the distance of a_i from that span, and the product the volume of all.
Pairs i = j are left out: they are the positives, whose volumes `own` are formed in float64. With
r, c, p, t the upstream gradients of row_lse, col_lse, own and total:

    G_ij = r_i·exp(s_ij − row_lse_i) + c_j·exp(s_ij − col_lse_j) + t for i ≠ j, otherwise 0
    h_ij = −scale·volume_j·G_ij/d_ij, 0 where d_ij is: a root has no gradient there
    grad_a_i = (Σ_j h_ij)·a_i − Σ_jk h_ij·v_ijk·q_kj     grad_q_kj = −Σ_i h_ij·v_ijk·a_i
    grad_volume_j = −scale·Σ_i G_ij·d_ij                 grad_scale = −Σ_ij G_ij·volume_j·d_ij

and from grad_q, grad_volume and p the gradients of the rows j by gram_schmidt.py.

Never stored: the volumes, the basis, or its gradient. Loop order: a tile of columns, of which the
basis is formed in float64; for each all tiles of rows; the backward computes each tile anew.
Precision: products in float32 (float64 for float64 rows), statistics in float64.

anchor and each of others: (N, D); scale: 0-D. `wanted` says whether the gradients of the anchor and
of each of the others are; otherwise they come back empty.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmcore.backends import selected
from mmcore.ops.autograd import differentiable, once_differentiable
from mmcore.ops.define import define
from mmcore.ops.gradients import fake_gradients, only_wanted
from mmcore.ops.gram_schmidt import orthonormalise, orthonormalise_backward
from mmcore.ops.log_sum_exp import log_sum_exp, weighted_softmax
from mmcore.ops.precision import arithmetic_dtype

# Rows and columns of a tile. Each of its intermediate results fills 4 MiB of float32, in which
# caches help, or 64 MiB, where launches should be few.
CPU_TILE, GPU_TILE = 1024, 4096


class Volumes(NamedTuple):
    """A tile: v for each of the others, d and s."""

    products: list[Tensor]
    distance: Tensor
    logits: Tensor


class Span:
    """What the others' rows of a tile of columns span, and the volume with the anchor's rows."""

    def __init__(self, anchor: Tensor, others: Sequence[Tensor], columns: slice) -> None:
        self.rows = [z[columns].double() for z in (*others, anchor)]
        self.directions, self.lengths = orthonormalise(self.rows)
        self.basis = [q.to(arithmetic_dtype(anchor.dtype)) for q in self.directions[:-1]]
        self.volume = torch.cat(self.lengths[:-1], 1).prod(1)
        self.own = self.volume * self.lengths[-1][:, 0]

    def volumes(self, part: Tensor, scale: Tensor) -> Volumes:
        products = [part @ directions.T for directions in self.basis]
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
        grad_basis: list[Tensor] | None,
    ) -> None:
        """`gradient` is −scale·volume_j·G_ij, and becomes h_ij."""
        slope = gradient.div_(volumes.distance).masked_fill_(volumes.distance == 0, 0)
        if grad_part is not None:
            grad_part.addcmul_(slope.sum(1, keepdim=True), part)
        for k, product in enumerate(volumes.products):
            of_product = product.mul_(slope)
            if grad_part is not None:
                grad_part.addmm_(of_product, self.basis[k], alpha=-1)
            if grad_basis is not None:
                grad_basis[k].addmm_(of_product.T, part, alpha=-1)

    def backward(
        self, grad_basis: list[Tensor] | None, grad_volume: Tensor, grad_own: Tensor
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
            [*grad_lengths, (grad_own * self.volume)[:, None]],
        )


# Plain torch, for every device


def forward(
    anchor: Tensor, others: Sequence[Tensor], scale: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row_lse = anchor.new_full(anchor.shape[:1], -torch.inf, dtype=torch.float64)
    col_lse, own, total = row_lse.clone(), torch.empty_like(row_lse), row_lse.new_zeros(())
    wide = anchor.to(arithmetic_dtype(anchor.dtype))
    for columns in _tiles(anchor):
        span = Span(anchor, others, columns)
        own[columns] = span.own
        for rows in _tiles(anchor):
            logits = span.volumes(wide[rows], scale).logits
            total += logits.sum(dtype=torch.float64)
            if rows == columns:
                total -= logits.diagonal().sum(dtype=torch.float64)
                logits.diagonal().fill_(-torch.inf)
            row_lse[rows] = torch.logaddexp(row_lse[rows], log_sum_exp(logits, 1))
            col_lse[columns] = torch.logaddexp(col_lse[columns], log_sum_exp(logits, 0))
    return row_lse, col_lse, own, total


def backward_of(
    anchor: Tensor, others: Sequence[Tensor], scale: Tensor, *arguments: Any
) -> tuple[Tensor, list[Tensor], Tensor]:
    *statistics, grad_own, grad_total, wanted = arguments
    wide = anchor.to(arithmetic_dtype(anchor.dtype))
    gradients = [
        z.new_zeros(z.shape) if is_wanted else None
        for z, is_wanted in zip((*others, wide), (*wanted[1:], wanted[0]), strict=True)
    ]
    grad_anchor, grad_scale = gradients[-1], torch.zeros_like(grad_total)
    for columns in _tiles(anchor):
        span = Span(anchor, others, columns)
        grad_basis = [torch.zeros_like(q) for q in span.basis] if any(wanted[1:]) else None
        of_distance = torch.zeros_like(span.volume)  # Σ_i G_ij·d_ij
        for rows in _tiles(anchor):
            volumes = span.volumes(wide[rows], scale)
            gradient = _gradient(volumes.logits, rows, columns, statistics, grad_total)
            of_distance += (gradient * volumes.distance).sum(0, dtype=torch.float64)
            gradient *= -(scale * span.volume).to(gradient.dtype)
            of_part = None if grad_anchor is None else grad_anchor[rows]
            span.add_gradients(wide[rows], volumes, gradient, of_part, grad_basis)
        grad_scale -= (of_distance * span.volume).sum()
        of_rows = span.backward(grad_basis, -scale * of_distance, grad_own[columns])
        for total, part in zip(gradients, of_rows, strict=True):
            if total is not None:
                total[columns] += part
    *grad_others, grad_anchor = [anchor.new_empty(0) if g is None else g for g in gradients]
    return grad_anchor.to(anchor.dtype), grad_others, grad_scale.to(scale.dtype)


def _gradient(
    logits: Tensor,
    rows: slice,
    columns: slice,
    statistics: Sequence[Tensor],
    grad_total: Tensor,
) -> Tensor:
    """G of a tile."""
    row_lse, col_lse, grad_row_lse, grad_col_lse = statistics
    gradient = weighted_softmax(logits, row_lse[rows, None], grad_row_lse[rows, None])
    gradient += weighted_softmax(logits, col_lse[columns], grad_col_lse[columns])
    gradient += grad_total.to(gradient.dtype)
    if rows == columns:
        gradient.diagonal().zero_()
    return gradient


def _tiles(anchor: Tensor) -> Iterator[slice]:
    size = CPU_TILE if anchor.device.type == "cpu" else GPU_TILE
    for start in range(0, anchor.shape[0], size):
        yield slice(start, min(start + size, anchor.shape[0]))


# Contract

_INPUTS = "Tensor anchor, Tensor[] others, Tensor scale"
SCHEMA = f"({_INPUTS}, str backend) -> (Tensor row_lse, Tensor col_lse, Tensor own, Tensor total)"
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor row_lse, Tensor col_lse, Tensor grad_row_lse, Tensor grad_col_lse, "
    "Tensor grad_own, Tensor grad_total, bool[] wanted, str backend) -> "
    "(Tensor grad_anchor, Tensor[] grad_others, Tensor grad_scale)"
)


def fake_forward(
    anchor: Tensor, others: Sequence[Tensor], scale: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    row_lse = anchor.new_empty(anchor.shape[:1], dtype=torch.float64)
    return row_lse, torch.empty_like(row_lse), torch.empty_like(row_lse), row_lse.new_empty(())


def fake_backward(
    anchor: Tensor, others: Sequence[Tensor], scale: Tensor, *arguments: Any
) -> tuple[Tensor, list[Tensor], Tensor]:
    wanted = arguments[-2]
    grad_anchor, *grad_others = fake_gradients((anchor, *others), wanted)
    return grad_anchor, grad_others, torch.empty_like(scale)


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    anchor, scale, *others, ctx.backend = inputs
    ctx.save_for_backward(anchor, scale, *output[:2], *others)


def backward(ctx: Any, *upstream: Tensor) -> tuple[Any, ...]:
    anchor, scale, row_lse, col_lse, *others = ctx.saved_tensors
    wants_anchor, wants_scale, *wants_others, _ = ctx.needs_input_grad
    wanted = [wants_anchor, *wants_others]
    grad_anchor, *grad_others, grad_scale = _backward_op(
        anchor, others, scale, row_lse, col_lse, *upstream, wanted, ctx.backend
    )
    of_features = only_wanted((grad_anchor, *grad_others), wanted)
    return of_features[0], grad_scale if wants_scale else None, *of_features[1:], None


# Backends

define(
    "gram_volume",
    SCHEMA,
    fake=fake_forward,
    implementations=dict.fromkeys(("reference", "cpu", "triton"), forward),
)
define(
    "gram_volume_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations=dict.fromkeys(("reference", "cpu", "triton"), backward_of),
)


_backward_op = once_differentiable(torch.ops.mmcore.gram_volume_backward.default)


def _call_flat(anchor: Tensor, scale: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    """As autograd wants it: without a list of tensors."""
    *others, backend = rest
    outputs: tuple[Tensor, ...] = torch.ops.mmcore.gram_volume(anchor, others, scale, backend)
    return outputs


_call = differentiable(_call_flat, save=save, backward=backward)


def call(
    anchor: Tensor, others: Sequence[Tensor], scale: Tensor, *, backend: str | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """row_lse, col_lse, own and total, differentiable."""
    row_lse, col_lse, own, total = _call(anchor, scale, *others, selected(backend))
    return row_lse, col_lse, own, total
