"""Dense products with float32 sums, by torch: its library's are hard to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.triton.launch import row_tile, whole
from mmcore.backends.triton.product_rows import scale_rows_kernel


def product(a: Tensor, b: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """a·b with float32 sums, rounded once to `dtype`: float32, or that of both."""
    if a.dtype == torch.float32 or (a.dtype == dtype and a.device.type != "cpu"):
        return a @ b
    if a.device.type == "cpu":  # in the interpreter: torch.mm has no float32 sums there
        return (a.float() @ b.float()).to(dtype)
    return torch.mm(a, b, out_dtype=dtype)


def add_product(total: Tensor, a: Tensor, b: Tensor, begins: bool) -> None:
    """total += a·b, float32; with `begins`, total = a·b."""
    beta = 0 if begins else 1
    if a.dtype == torch.float32 or a.device.type == "cpu":
        total.addmm_(a.float(), b.float(), beta=beta)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)


def scale_rows(product: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    """out = factor·product, in the dtype of `out`, which may be the product itself."""
    (rows, columns), tile = product.shape, row_tile(product.shape[1])
    scale_rows_kernel[(whole(rows, tile.ROWS),)](
        product, factor, out, rows, columns, product.stride(0), out.stride(0), **tile._asdict()
    )
    return out
