"""What the sums of tiles and of targets add up to, after a pass of sigmoid_similarity.

    total = Σ_tiles (total + positive) + Σ_i softplus(s_i)
    positive = Σ_tiles positive + Σ_i s_i
    loss = (Σ_tiles total + Σ_i softplus(−s_i)) / N
    grad_scale = factor·Σ_tiles G·⟨x, y⟩        grad_bias = factor·Σ_tiles G

Sums over targets and the factor are those of prepare.py.

Never stored: anything larger than O(1).
Loop order: one program, in a fixed order.
Precision: float64.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned


class Totals(NamedTuple):
    """What one pass over the matrix adds up to."""

    total: Any  # 0-D float64; of the loss of SigLIP the loss, float32
    positive: Any  # 0-D float64; not found for that loss
    sums: Any  # (2,) float64: the gradients of scale and bias, where there are gradients


class Found(NamedTuple):
    """Which sums there are."""

    HAS_TARGET: bool
    HAS_LABELS: bool
    HAS_GRADIENTS: bool
    IS_LOSS: bool


@triton.jit
def sum_of(numbers, count, stride, BLOCK: tl.constexpr):
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        total += tl.load(numbers + at * stride, mask=at < count, other=0)
    return tl.sum(total, 0)


@planned
@triton.jit
def sigmoid_totals_kernel(
    parts, wide, out, tiles, programs, rows, FOUND: tl.constexpr, BLOCK: tl.constexpr
):
    """`parts` has four numbers of each tile (tile.py), `wide` two of each program of prepare.py."""
    total = sum_of(parts, tiles, 4, BLOCK)
    positive = sum_of(parts, 0, 4, BLOCK)
    if FOUND.HAS_LABELS:
        positive = sum_of(parts + 1, tiles, 4, BLOCK)
        total += positive
    if FOUND.HAS_TARGET:
        total += sum_of(wide + 2, programs, 2, BLOCK)
        positive += sum_of(wide + 3, programs, 2, BLOCK)
    if FOUND.IS_LOSS:
        loss = total / tl.cast(rows, tl.float64)
        tl.store(out.total, loss.to(tl.float32))
    else:
        tl.store(out.total, total)
        tl.store(out.positive, positive)
    if FOUND.HAS_GRADIENTS:
        factor = tl.load(wide)
        tl.store(out.sums, sum_of(parts + 3, tiles, 4, BLOCK) * factor)
        tl.store(out.sums + 1, sum_of(parts + 2, tiles, 4, BLOCK) * factor)
