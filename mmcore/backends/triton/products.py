"""Dense products with float32 sums, by torch: the vendor's library is hard to beat at them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Thousands of rows, and small beside what it is a piece of.
PIECE_BYTES = 64 * 2**20


def row_pieces(matrix: Tensor) -> Iterator[slice]:
    """The rows of a matrix, as many at a time as make a piece in float32."""
    size = max(1, PIECE_BYTES // (matrix.shape[1] * torch.float32.itemsize))
    for first in range(0, len(matrix), size):
        yield slice(first, first + size)


def product(a: Tensor, b: Tensor) -> Tensor:
    """a·b, float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cpu":  # the interpreter's; torch.mm has no such sums there
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def add_product(total: Tensor, a: Tensor, b: Tensor) -> None:
    """total += a·b, float32, of which pieces alone are stored apart."""
    if a.dtype == torch.float32:
        total.addmm_(a, b)
        return
    for rows in row_pieces(total):
        total[rows].add_(product(a[rows], b))
