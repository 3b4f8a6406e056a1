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

and from grad_q, grad_volume and p the gradients of the rows j: backends/reference/gram_schmidt.py.

Never stored: the volumes, the basis, or its gradient. Loop order: a tile of columns, of which the
basis is formed in float64; for each all tiles of rows; the backward computes each tile anew.
Precision: products in float32 (float64 for float64 rows), statistics in float64.

anchor and each of others: (N, D); scale: 0-D. `wanted` says whether the gradients of the anchor, of
each of the others and of the scale are; otherwise they come back empty.
"""

from __future__ import annotations

import torch

from mmcore.backends import selected
from mmcore.backends.reference.volume import VolumeInputs as VolumeInputs
from mmcore.backends.reference.volume import VolumeStatistics as VolumeStatistics
from mmcore.backends.reference.volume import VolumeWanted
from mmcore.ops.family import Family
from mmcore.ops.flops import Product


def fake(inputs: VolumeInputs) -> VolumeStatistics:
    anchor = inputs.anchor
    row_lse, col_lse, own = (
        anchor.new_empty(anchor.shape[:1], dtype=torch.float64) for _ in range(3)
    )
    return VolumeStatistics(row_lse, col_lse, own, row_lse.new_empty(()))


def products(inputs: VolumeInputs, wanted: VolumeWanted) -> list[Product]:
    """The anchor's rows by those of each other modality."""
    size = inputs.anchor.numel() * inputs.anchor.shape[0]
    return [Product(size, wanted.anchor, other) for other in wanted.others]


family = Family(
    "volume", inputs=VolumeInputs, results=VolumeStatistics, upstream=VolumeStatistics,
    wanted=VolumeWanted, fake=fake, reads=lambda inputs: ("row_lse", "col_lse"),
    products=products,
)  # fmt: skip


def call(inputs: VolumeInputs, *, backend: str | None) -> VolumeStatistics:
    """The statistics, differentiable; the inputs are checked."""
    return family(inputs, backend=selected(backend))
