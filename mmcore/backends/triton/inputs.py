"""One similarity matrix as the ops describe it, and what the kernels need of it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton.launch import (
    HEAVY,
    by_pointers,
    has_tensor_float_32,
    is_aligned,
    is_interpreted,
    product_tile,
    unit_stride,
)
from mmcore.backends.triton.pair_ids import count_positives, ranks
from mmcore.backends.triton.tuned_tiles import ProductTile


class Matrix(SimilarityInputs):
    """One similarity matrix as the kernels take it: the columns' vectors are always spelled out."""

    __slots__ = ()

    @staticmethod
    def of(*described: Any) -> Matrix:
        """From the arguments of the op."""
        matrix = Matrix(*described)
        matrix = matrix._replace(x=unit_stride(matrix.x))
        if matrix.y is None:
            matrix = matrix._replace(
                col_bias=matrix.row_bias, col_label=matrix.row_label, col_group=matrix.row_group
            )
        else:
            matrix = matrix._replace(y=unit_stride(matrix.y))
        if matrix.row_label is not None and matrix.col_label is not None:
            row, col = ranks(matrix.row_label, matrix.col_label)
            matrix = matrix._replace(row_label=row, col_label=col)
        if matrix.row_group is not None and matrix.col_group is not None:
            row, col = ranks(matrix.row_group, matrix.col_group)
            matrix = matrix._replace(row_group=row, col_group=col)
        return matrix

    @property
    def keys(self) -> Tensor:
        """y, which may be x."""
        return self.x if self.y is None else self.y

    @property
    def is_half_enough(self) -> bool:
        """True if y is x and only rows are wanted, so that half the matrix suffices."""
        return self.y is None and not self.has_columns

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        return self.x.shape[0], self.keys.shape[0]

    @property
    def rounds(self) -> bool:
        """Whether operands are rounded to bfloat16."""
        return self.multiplies_bfloat16 and self.x.dtype == torch.float32

    @property
    def product_dtype(self) -> torch.dtype:
        """In which operands are multiplied."""
        return torch.bfloat16 if self.rounds else self.x.dtype

    def rounded(self) -> Matrix:
        """The matrix of operands as they are multiplied: of copies where they are rounded.

        Tiles then pass through no registers on their way to the matrix units.
        """
        if not self.rounds:
            return self
        y = None if self.y is None else self.y.to(torch.bfloat16)
        return self._replace(x=self.x.to(torch.bfloat16), y=y)

    def tile(self, kind: str) -> ProductTile:
        """The tile of its products for a kind of epilogue (launch.py)."""
        if self.y is None or self.row_label is not None:
            kind = HEAVY[kind]
        tile = product_tile(self.x, self.product_dtype, kind)
        if tile.USES_DESCRIPTORS and not self.may_use_descriptors():
            return by_pointers(tile)
        return tile

    def ids(self) -> tuple[Tensor, ...]:
        """target, labels and groups; x, a dummy pointer, replaces missing ones."""
        vectors = (self.target, self.row_label, self.col_label, self.row_group, self.col_group)
        return tuple(self.x if ids is None else ids.contiguous() for ids in vectors)

    def count_positives(self, of_rows: bool) -> Tensor | None:
        """How many positives labels give each row, or column; None without labels."""
        rows = (self.row_label, self.row_group)
        columns = (self.col_label, self.col_group)
        (own, own_group), (other, other_group) = (rows, columns) if of_rows else (columns, rows)
        if own is None or other is None:
            return None
        return count_positives(own, other, own_group, other_group)

    def may_use_descriptors(self) -> bool:
        """Whether rows begin at multiples of 16 bytes, as the GPU's copy engine wants them."""
        return is_aligned(self.x) and is_aligned(self.keys)

    def features(self, tile: ProductTile) -> tuple[Any, Any]:
        """x and y as the kernels take them."""
        if not tile.USES_DESCRIPTORS:
            return self.x, self.keys
        return (
            TensorDescriptor.from_tensor(self.x, [tile.BM, tile.BK]),
            TensorDescriptor.from_tensor(self.keys, [tile.BN, tile.BK]),
        )

    def kept(self, rows_of_e: Tensor, tile: ProductTile) -> Any:
        """E as the kernels take it (kept_exponentials.py)."""
        if len(rows_of_e) == 0 or not tile.USES_DESCRIPTORS:
            return rows_of_e
        return TensorDescriptor.from_tensor(rows_of_e, [tile.BM, tile.BN])

    def settings(self, tile: ProductTile) -> dict[str, Any]:
        """The tile, and the switches of every kernel."""
        return {
            **tile._asdict(),
            "HAS_TARGET": self.target is not None,
            "HAS_LABELS": self.row_label is not None,
            "HAS_GROUPS": self.row_group is not None,
            "DEPTH": self.x.shape[1],
            "WIDENS": is_interpreted() and self.product_dtype == torch.bfloat16,
            "PRECISION": product_precision(self.x, self.product_dtype),
        }

    def biases(self) -> tuple[Tensor, Tensor, Tensor]:
        """The scalar, of rows and of columns; x, a dummy pointer, replaces missing ones."""
        every = (self.bias, self.row_bias, self.col_bias)
        bias, row_bias, col_bias = (self.x if it is None else it.contiguous() for it in every)
        return bias, row_bias, col_bias

    def which_biases(self) -> dict[str, bool]:
        """The switches of every kernel that takes them."""
        return {
            "HAS_BIAS": self.bias is not None,
            "HAS_ROW_BIAS": self.row_bias is not None,
            "HAS_COL_BIAS": self.col_bias is not None,
        }


def product_precision(x: Tensor, product_dtype: torch.dtype) -> str:
    """How matrix units may multiply float32, as torch is told; of 16 bits there is one way."""
    if product_dtype != torch.float32 or not has_tensor_float_32(x.device):
        return "ieee"
    try:
        return "tf32" if torch.get_float32_matmul_precision() == "high" else "ieee"
    except RuntimeError:  # set by torch's newer switches, of which the older one knows nothing
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
