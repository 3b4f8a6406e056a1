"""Dense products with float32 sums, by torch: the vendor's library is hard to beat at them."""

from __future__ import annotations

import torch
from torch import Tensor

# Of a product that is added to another: large enough to fill any GPU.
PIECE_BYTES = 64 * 2**20


def product(a: Tensor, b: Tensor) -> Tensor:
    """a·b, float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32)
    return a.float() @ b.float()


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a·b, float32, of which pieces alone are stored apart."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
        return
    piece = max(1, PIECE_BYTES // (total.shape[1] * total.element_size()))
    for first in range(0, len(total), piece):
        rows = slice(first, first + piece)
        total[rows] += product(a[rows], b)
