"""Dense products with float32 sums, by torch: the vendor's library is hard to beat at them."""

from __future__ import annotations

import torch
from torch import Tensor


def product(a: Tensor, b: Tensor) -> Tensor:
    """a·b, float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a·b, float32."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
    else:
        total += product(a, b)
