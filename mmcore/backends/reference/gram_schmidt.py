"""What several rows span: an orthonormal basis by Gram and Schmidt, for many sets of rows at once.

    v_k = z_k − Σ_{m < k} ⟨z_k, q_m⟩·q_m     r_k = ‖v_k‖     q_k = v_k/r_k

The volume that the rows span is the product of the lengths r_k. A row that lies in the span of
those before it, up to an angle of 1e-6, adds none: its r_k and q_k are 0, and so are their
gradients. NaN and inf in a row give NaN. Backward, from the last row to the first, with bars over
gradients:

    v̄ = (q̄_k − ⟨q̄_k, q_k⟩·q_k)/r_k + r̄_k·q_k
    z̄_k = v̄ − Σ_{m < k} ⟨v̄, q_m⟩·q_m     q̄_m −= ⟨z_k, q_m⟩·v̄ + ⟨v̄, q_m⟩·z_k for m < k

Every z_k is (rows, D) and every r_k (rows, 1), in float64: the third of three rows that all but
coincide is the small difference of large numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Squared sine of the angle below which a row lies in the span of others.
PARALLEL = 1e-12


def orthonormalise(rows: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Directions q_k and lengths r_k."""
    directions: list[Tensor] = []
    lengths: list[Tensor] = []
    for z in rows:
        v = z
        for q in directions:
            v = v - dot(v, q) * q
        square, whole = dot(v, v), dot(z, z)
        # What is not finite is no row of the span either, and must not vanish as one.
        is_parallel = (square <= PARALLEL * whole) & whole.isfinite()
        length = torch.where(is_parallel, 0, square).sqrt_()
        directions.append(torch.where(is_parallel, 0, v / length))
        lengths.append(length)
    return directions, lengths


def orthonormalise_backward(
    rows: Sequence[Tensor],
    directions: Sequence[Tensor],
    lengths: Sequence[Tensor],
    grad_directions: Sequence[Tensor],
    grad_lengths: Sequence[Tensor],
) -> list[Tensor]:
    """The gradients of the rows; those of the directions are overwritten."""
    gradients: list[Tensor] = []
    for k in reversed(range(len(rows))):
        z, q, grad_q = rows[k], directions[k], grad_directions[k]
        v = (grad_q - dot(grad_q, q) * q) / lengths[k] + grad_lengths[k] * q
        v = torch.where(lengths[k] == 0, 0, v)
        grad_z = v.clone()
        for before, grad_before in zip(directions[:k], grad_directions[:k], strict=True):
            along = dot(v, before)
            grad_z -= along * before
            grad_before -= dot(z, before) * v + along * z
        gradients.append(grad_z)
    return gradients[::-1]


def dot(x: Tensor, y: Tensor) -> Tensor:
    """(rows, 1)."""
    return (x * y).sum(-1, keepdim=True)
