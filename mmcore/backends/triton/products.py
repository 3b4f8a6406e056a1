"""Dense products with float32 sums, by torch: its library's are hard to beat."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.triton.launch import row_tile, whole
from mmcore.backends.triton.product_rows import scale_rows_kernel


def product(a: Tensor, b: Tensor) -> Tensor:
    """a·b, float32."""
    if a.dtype == torch.float32:
        return a @ b
    if a.device.type == "cpu":  # in the interpreter: torch.mm has no float32 sums there
        return a.float() @ b.float()
    return torch.mm(a, b, out_dtype=torch.float32)


def add_product(total: Tensor, a: Tensor, b: Tensor, begins: bool) -> None:
    """total += a·b, float32; with `begins`, total = a·b."""
    beta = 0 if begins else 1
    if a.dtype == torch.float32 or a.device.type == "cpu":
        total.addmm_(a.float(), b.float(), beta=beta)
    else:
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)


def scale_rows(product: Tensor, factor: Tensor, out: Tensor) -> Tensor:
    """out = factor·product, in the dtype of `out`, which may be the product itself."""
    _scale_rows(product, None, factor, out, out)
    return out


def sum_with_rows(product: Tensor, features: Tensor, factor: Tensor, out: Tensor | None) -> Tensor:
    """Partial sums of Σ product·features, float64; fills `out`, if any, as scale_rows does."""
    programs = whole(len(product), row_tile(product.shape[1]).ROWS)
    part = product.new_empty(programs, dtype=torch.float64)
    _scale_rows(product, features, factor, out, part)
    return part


def _scale_rows(
    product: Tensor, features: Tensor | None, factor: Tensor, out: Tensor | None, part: Tensor,
) -> None:  # fmt: skip
    (rows, columns), tile = product.shape, row_tile(product.shape[1])
    beside, target = (product if it is None else it for it in (features, out))
    scale_rows_kernel[(whole(rows, tile.ROWS),)](
        product, beside, factor, target, part, rows, columns, product.stride(0), beside.stride(0),
        target.stride(0), STORES=out is not None, SUMS=features is not None, **tile._asdict(),
    )  # fmt: skip
