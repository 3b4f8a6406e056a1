"""The losses that are one op on a GPU, mmcore::clip and mmcore::siglip: inputs and calls of them.

With what each stands for: the composition, which the reference computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional
from mmcore.backends.reference.clip import ClipInputs, ClipWanted
from mmcore.backends.reference.siglip import SiglipInputs, SiglipWanted
from mmcore.ops import clip, siglip

Draw = Callable[[int], list[Tensor]]  # x and y of as many rows
# Chunks of one block of rows; rows of E kept for some of them; everything at once.
LEAN, SOME, ROOMY = 0, 2**18, 2**30
every_workspace = pytest.mark.parametrize("size", [LEAN, ROOMY])


class Fused(NamedTuple):
    """One of them."""

    loss: Callable[..., Tensor]
    op: Any  # its module in mmcore/ops
    inputs: Any
    wanted: Any
    scalars: tuple[float, ...]  # the scale, and the bias if there is one

    def composed(self, *inputs: Any) -> Tensor:
        """What the CPU and the reference compute."""
        return self.loss(*inputs, backend="reference")

    def leaves(self, rows: int = 20, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        """All of its inputs, with gradients."""
        sides = [unit_rows(rows).to(dtype), unit_rows(rows).to(dtype)]
        return [each.requires_grad_() for each in (*sides, *numbers(*self.scalars))]

    def gradients(self, leaves: Sequence[Tensor], upstream: float = 1.0) -> list[Tensor]:
        """Of the leaves."""
        return gradients(self.loss(*leaves), leaves, upstream)


FUSED = {
    "clip": Fused(functional.clip_loss, clip, ClipInputs, ClipWanted, (10.0,)),
    "siglip": Fused(functional.siglip_loss, siglip, SiglipInputs, SiglipWanted, (10.0, -5.0)),
}
every_loss = pytest.mark.parametrize("fused", FUSED.values(), ids=FUSED)


def unit_rows(rows: int, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def numbers(*values: float) -> list[Tensor]:
    return [torch.tensor(value) for value in values]


def gradients(loss: Tensor, leaves: Sequence[Tensor], upstream: float = 1.0) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, torch.full_like(loss, upstream)))


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = other.detach().abs().max().item()
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)


@contextmanager
def unwritten_is_nan() -> Iterator[None]:
    """Memory that nothing has written to yet holds NaN."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


# Features that are hard in one way or another.


def converged(rows: int) -> list[Tensor]:
    """Where positives leave σ, or a softmax, a small rest of 1."""
    x = unit_rows(rows, 40)
    return [x, F.normalize(x + 0.05 * unit_rows(rows, 40), dim=1)]


def duplicates(rows: int) -> list[Tensor]:
    return [unit_rows(rows, 40)[torch.arange(rows) // copies] for copies in (3, 2)]


def zero_rows(rows: int) -> list[Tensor]:
    x, y = unit_rows(rows, 40), unit_rows(rows, 40)
    x[::3], y[1::4] = 0, 0
    return [x, y]


def strided(rows: int) -> list[Tensor]:
    return [torch.randn(40, rows).T, torch.randn(3 * rows, 90)[::3, 5:45]]


def unnormalised(rows: int) -> list[Tensor]:
    return [torch.randn(rows, 40), 3 * torch.randn(rows, 40)]


def far_below_the_bound(rows: int) -> list[Tensor]:
    """One long row on each side: at a scale of 10 no sum of the others is trusted."""
    x, y = unit_rows(rows, 40), unit_rows(rows, 40)
    x[0], y[rows // 2] = 4 * x[0], 4 * y[rows // 2]
    return [x, y]
