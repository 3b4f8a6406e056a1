"""What the last program of a launch does: it adds up what all programs have stored.

    total = Σ_p part_p

Never stored: nothing besides the parts and the total.
Loop order: programs count themselves when they are done. The last one adds the parts in their
order, whichever program it is, so that two runs have the same bits.
Precision: float64 parts and sums. The counter is float32, which is exact for 2²⁴ programs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from mmcore.backends.triton.constants import Constant

BLOCK = Constant(1024)


@triton.jit
def is_last(counter):
    """Whether every other program has come here before.

    The counter begins at 0, and is 0 again afterwards. A program stores its parts first.
    """
    tl.debug_barrier()
    is_last = tl.atomic_add(counter, 1.0) == tl.num_programs(0) - 1
    if is_last:
        tl.store(counter, 0.0)
    return is_last


@triton.jit
def sum_in_order(parts, count):
    """The sum of `count` numbers that other programs have stored."""
    total = tl.zeros([BLOCK], tl.float64)
    for start in range(0, count, BLOCK):
        at = start + tl.arange(0, BLOCK)
        # Not through L1, which other programs' stores do not reach.
        total += tl.load(parts + at, mask=at < count, other=0, cache_modifier=".cg")
    return tl.sum(total, 0)


@triton.jit
def store_total(out, total):
    """Rounds a float64 number to the dtype of `out`, 16-bit ones by way of float32."""
    if out.dtype.element_ty == tl.float64:
        tl.store(out, total)
    else:
        tl.store(out, total.to(tl.float32))
