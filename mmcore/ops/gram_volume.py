"""Statistics of the volumes that an anchor's row spans with the rows of other modalities.

    s_ij = −scale·volume_j·d_ij    d_ij = sqrt(max(0, ‖a_i‖² − Σ_k v_ijk²))    v_ijk = ⟨a_i, q_kj⟩
    row_lse_i = log Σ_{j ≠ i} exp s_ij   col_lse_j = log Σ_{i ≠ j} exp s_ij   total = Σ_{i ≠ j} s_ij

q_1j, q_2j, … are an orthonormal basis of what the other modalities' rows j span, and volume_j is
their own volume: d_ij is the distance of a_i from that span, and the product the volume of all.
Pairs i = j are left out: they are the positives, O(N·D), and whoever calls this has them in
float64. With r, c, t the upstream gradients:

    G_ij = r_i·exp(s_ij − row_lse_i) + c_j·exp(s_ij − col_lse_j) + t for i ≠ j, otherwise 0
    h_ij = −scale·volume_j·G_ij/d_ij, 0 where d_ij is: a root has no gradient there
    grad_a_i = (Σ_j h_ij)·a_i − Σ_jk h_ij·v_ijk·q_kj     grad_q_kj = −Σ_i h_ij·v_ijk·a_i
    grad_volume_j = −scale·Σ_i G_ij·d_ij                 grad_scale = −Σ_ij G_ij·volume_j·d_ij

anchor: (N, D); basis: (K, N, D), float32 or float64; volume: (N,) float64; scale: 0-D. The
statistics are float64. Rows are taken a slab at a time, whose numbers for one modality fill
SLAB_BYTES at most; the backward computes each slab anew. `wanted` says whether the gradients of
anchor and basis are; otherwise they come back without rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from mmcore.ops.define import define
from mmcore.ops.log_sum_exp import log_sum_exp, weighted_softmax
from mmcore.ops.precision import arithmetic_dtype

SLAB_BYTES = 32 * 2**20

# Plain torch, for every device


def forward(
    anchor: Tensor, basis: Tensor, volume: Tensor, scale: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    anchor, basis = _wide(anchor, basis)
    rows = torch.empty_like(volume)
    columns = volume.new_full(volume.shape, -torch.inf)
    total = volume.new_zeros(())
    for start, part in _slabs(anchor):
        _, distance = _distances(part, basis)
        logits = _logits(distance, volume, scale)
        total += logits.sum(dtype=torch.float64) - logits.diagonal(start).sum(dtype=torch.float64)
        logits.diagonal(start).fill_(-torch.inf)
        rows[start : start + len(part)] = log_sum_exp(logits, 1)
        columns = torch.logaddexp(columns, log_sum_exp(logits, 0))
    return rows, columns, total


def backward_of(
    anchor: Tensor,
    basis: Tensor,
    volume: Tensor,
    scale: Tensor,
    row_lse: Tensor,
    col_lse: Tensor,
    *arguments: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    grad_row_lse, grad_col_lse, grad_total, wanted = arguments
    wide, directions = _wide(anchor, basis)
    grad_anchor = wide.new_empty((wide if wanted[0] else wide[:0]).shape)
    grad_basis = directions.new_zeros((directions if wanted[1] else directions[:0]).shape)
    grad_volume = torch.zeros_like(volume)
    for start, part in _slabs(wide):
        products, distance = _distances(part, directions)
        logits = _logits(distance, volume, scale)
        of_slab = slice(start, start + len(part))
        gradient = weighted_softmax(logits, row_lse[of_slab, None], grad_row_lse[of_slab, None])
        gradient += weighted_softmax(logits, col_lse, grad_col_lse)
        gradient += grad_total.to(gradient.dtype)
        gradient.diagonal(start).zero_()
        grad_volume += (gradient * distance).sum(0, dtype=torch.float64)
        slope = gradient * -(scale * volume).to(gradient.dtype)
        slope = torch.where(distance > 0, slope / distance, 0)
        if wanted[0]:
            grad_anchor[of_slab] = slope.sum(1, keepdim=True) * part
        for k, product in enumerate(products):
            of_product = slope * product
            if wanted[0]:
                grad_anchor[of_slab] -= of_product @ directions[k]
            if wanted[1]:
                grad_basis[k] -= of_product.T @ part
    return (
        grad_anchor.to(anchor.dtype),
        grad_basis.to(basis.dtype),
        -scale.double() * grad_volume,
        -(grad_volume * volume).sum().to(scale.dtype),
    )


def _wide(*tensors: Tensor) -> list[Tensor]:
    return [value.to(arithmetic_dtype(value.dtype)) for value in tensors]


def _slabs(anchor: Tensor) -> Iterator[tuple[int, Tensor]]:
    rows = max(1, SLAB_BYTES // (anchor.element_size() * anchor.shape[0]))
    for start in range(0, anchor.shape[0], rows):
        yield start, anchor[start : start + rows]


def _distances(part: Tensor, basis: Tensor) -> tuple[list[Tensor], Tensor]:
    """v, one for each modality, and d."""
    products = [part @ directions.T for directions in basis]
    square = part.square().sum(1, keepdim=True).expand(products[0].shape).clone()
    for product in products:
        square.addcmul_(product, product, value=-1)
    return products, square.clamp_(min=0).sqrt_()


def _logits(distance: Tensor, volume: Tensor, scale: Tensor) -> Tensor:
    return distance * -(scale * volume).to(distance.dtype)


# Contract

_INPUTS = "Tensor anchor, Tensor basis, Tensor volume, Tensor scale"
SCHEMA = f"({_INPUTS}, str backend) -> (Tensor row_lse, Tensor col_lse, Tensor total)"
BACKWARD_SCHEMA = (
    f"({_INPUTS}, Tensor row_lse, Tensor col_lse, Tensor grad_row_lse, Tensor grad_col_lse, "
    "Tensor grad_total, bool[] wanted, str backend) -> "
    "(Tensor grad_anchor, Tensor grad_basis, Tensor grad_volume, Tensor grad_scale)"
)


def fake_forward(
    anchor: Tensor, basis: Tensor, volume: Tensor, scale: Tensor, backend: str
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(volume), torch.empty_like(volume), volume.new_empty(())


def fake_backward(
    anchor: Tensor, basis: Tensor, volume: Tensor, scale: Tensor, *arguments: Any
) -> tuple[Tensor, ...]:
    wanted = arguments[-2]
    return (
        anchor.new_empty(anchor.shape if wanted[0] else (0, *anchor.shape[1:])),
        basis.new_empty(basis.shape if wanted[1] else (0, *basis.shape[1:])),
        torch.empty_like(volume),
        torch.empty_like(scale),
    )


# Autograd


def save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.backend = inputs
    ctx.save_for_backward(*tensors, *output[:2])


def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
    wanted = list(ctx.needs_input_grad[:4])
    gradients = torch.ops.mmcore.gram_volume_backward(
        *ctx.saved_tensors, *upstream, wanted[:2], ctx.backend
    )
    pairs = zip(gradients, wanted, strict=True)
    return (*(gradient if is_wanted else None for gradient, is_wanted in pairs), None)


# Backends

define(
    "gram_volume",
    SCHEMA,
    fake=fake_forward,
    implementations=dict.fromkeys(("reference", "cpu", "triton"), forward),
    save=save,
    backward=backward,
)
define(
    "gram_volume_backward",
    BACKWARD_SCHEMA,
    fake=fake_backward,
    implementations=dict.fromkeys(("reference", "cpu", "triton"), backward_of),
)
