"""Inputs of mmcore::siglip, its call, and the composition that it stands for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mmcore import functional

LEAN, ROOMY = 0, 2**30
every_workspace = pytest.mark.parametrize("size", [LEAN, ROOMY])


def unit_rows(rows: int, width: int = 16) -> Tensor:
    return F.normalize(torch.randn(rows, width), dim=1)


def scalars(scale: float, bias: float) -> list[Tensor]:
    return [torch.tensor(scale), torch.tensor(bias)]


def fused(*inputs: Any) -> Sequence[Tensor]:
    return [functional.siglip_loss(*inputs)]


def composed(*inputs: Any) -> Tensor:
    """What the CPU and the reference compute."""
    return functional.siglip_loss(*inputs, backend="reference")


def gradients(loss: Tensor, leaves: Sequence[Tensor], upstream: float = 1.0) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves, torch.full_like(loss, upstream)))


def leaves_of(rows: int = 20, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    sides = [unit_rows(rows).to(dtype), unit_rows(rows).to(dtype)]
    return [each.requires_grad_() for each in (*sides, *scalars(10.0, -5.0))]


def close(found: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for one, other in zip(found, expected, strict=True):
        largest = other.detach().abs().max().item()
        torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance * largest)
