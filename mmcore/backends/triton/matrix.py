"""One similarity matrix as the ops describe it, and what the kernels need of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mmcore.backends.calls import SimilarityCall
from mmcore.backends.triton.launch import (
    HEAVY,
    by_pointers,
    has_tensor_float_32,
    is_aligned,
    is_interpreted,
    product_tile,
    row_tile,
    unit_stride,
)
from mmcore.backends.triton.pair_ids import count_positives, ranks
from mmcore.backends.triton.positives import target_products_kernel
from mmcore.backends.triton.tuned_tiles import ProductTile

LOG2_E = 1.0 / math.log(2)
# Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
LARGEST_SHARED_BOUND = 200


class Matrix(SimilarityCall):
    """One similarity matrix as the kernels take it: the columns' ids are always spelled out."""

    __slots__ = ()

    @staticmethod
    def of(*described: Any) -> Matrix:
        """From the arguments of the op."""
        matrix = Matrix(*described)
        matrix = matrix._replace(x=unit_stride(matrix.x))
        if matrix.y is None:
            matrix = matrix._replace(col_label=matrix.row_label, col_group=matrix.row_group)
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
        """Whether rows alone are asked about, of a matrix that is its own transpose."""
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

    def tile(self, kind: str) -> ProductTile:
        """The tile of its products for a kind of epilogue (launch.py)."""
        if self.y is None or self.row_label is not None:
            kind = HEAVY[kind]
        tile = product_tile(self.x, self.product_dtype, kind)
        if tile.USES_DESCRIPTORS and not self.may_use_descriptors():
            return by_pointers(tile)
        return tile

    def ids(self) -> tuple[Tensor, ...]:
        """target, labels and groups; x stands in for what there is not."""
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
        """Whether rows begin at multiples of 16 bytes, as the GPU's copy engine wants them.

        What is rounded on its way to the product passes through registers anyway.
        """
        return not self.rounds and is_aligned(self.x) and is_aligned(self.keys)

    def features(self, tile: ProductTile) -> tuple[Any, Any]:
        """x and y as the kernels take them."""
        if not tile.USES_DESCRIPTORS:
            return self.x, self.keys
        return (
            TensorDescriptor.from_tensor(self.x, [tile.BM, tile.BK]),
            TensorDescriptor.from_tensor(self.keys, [tile.BN, tile.BK]),
        )

    def kept(self, rows_of_e: Tensor, tile: ProductTile) -> Any:
        """E as the kernels take it (kept_rows.py)."""
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
            "ROUNDS": self.rounds,
            "WIDENS": is_interpreted() and self.product_dtype == torch.bfloat16,
            "PRECISION": product_precision(self.x, self.product_dtype),
        }

    def offset(self) -> Tensor:
        """The scalar bias, float64."""
        return (torch.zeros_like(self.scale) if self.bias is None else self.bias).double()

    def own_bias(self, of_rows: bool) -> Tensor:
        """What all logits of a row, or of a column, share; float64, 0-D where all have the same."""
        bias = self.row_bias if of_rows else self.col_bias
        return self.offset() if bias is None else self.offset() + bias.double()

    def target_logits(self) -> Tensor:
        """(N,) float64, every bias included: of −1 anything, of what is no column NaN."""
        assert self.target is not None
        products = target_products(self, self.target)
        logits = self.scale.double() * products + self.own_bias(of_rows=True)
        if self.col_bias is not None:
            known = self.target.clamp(0, self.shape[1] - 1)
            logits = logits + self.col_bias.double()[known]
        return logits


def product_precision(x: Tensor, product_dtype: torch.dtype) -> str:
    """How matrix units may multiply float32, as torch is told; of 16 bits there is one way."""
    if product_dtype != torch.float32 or not has_tensor_float_32(x.device):
        return "ieee"
    try:
        return "tf32" if torch.get_float32_matmul_precision() == "high" else "ieee"
    except RuntimeError:  # set by torch's newer switches, of which the older one knows nothing
        return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def target_products(matrix: Matrix, target: Tensor) -> Tensor:
    """⟨x_i, y_target(i)⟩, float64, of what is multiplied."""
    x, y = matrix.x, matrix.keys
    (rows, depth), tile = x.shape, row_tile(x.shape[1])
    out = torch.empty(rows, dtype=torch.float64, device=x.device)
    target_products_kernel[(triton.cdiv(rows, tile.ROWS),)](
        x, y, target.contiguous(), out, rows, y.shape[0], depth, x.stride(0), y.stride(0),
        matrix.rounds, *tile,
    )  # fmt: skip
    return out


def split(wide: Tensor) -> tuple[Tensor, Tensor]:
    """A float64 number as the sum of two float32 ones; the second is 0 beside an infinite one."""
    high = wide.float()
    return high, torch.where(high.isfinite(), wide - high.double(), 0.0).float()


class Plan(NamedTuple):
    """The shared shift and what it was taken from, all on the device."""

    numbers: Tensor  # (3,) float32: log2(e)·scale in two parts, shift
    shift: Tensor  # 0-D float64
    is_usable: Tensor  # 0-D bool

    @staticmethod
    def of(matrix: Matrix) -> Plan:
        """The largest possible E is 2⁸⁰: sums, and their reciprocals, stay within float32."""
        a = matrix.scale.double() * LOG2_E
        # Rounding to bfloat16 lengthens a row by at most one part in 256.
        bound = a.abs() * largest_norm(matrix.x) * largest_norm(matrix.keys) * 1.004
        shift = bound.ceil() - 80
        usable = bound <= LARGEST_SHARED_BOUND
        shift = torch.where(usable, shift, 0.0)
        return Plan(torch.stack([*split(a), shift.float()]), shift, usable)


def largest_norm(x: Tensor) -> Tensor:
    """max_i ‖x_i‖, 0-D float64."""
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).max().double()


def sides(matrix: Matrix) -> tuple[Plan, BiasFactors, BiasFactors, Tensor]:
    """Shift, factors of both sides' biases, and whether one shift may serve the whole matrix."""
    plan = Plan.of(matrix)
    row, col = (BiasFactors.of(bias, matrix.x) for bias in (matrix.row_bias, matrix.col_bias))
    return plan, row, col, plan.is_usable & row.are_normal & col.are_normal


class BiasFactors(NamedTuple):
    """2^(bias − largest) ≤ 1 of one side, float32, and log2(e)·largest."""

    bias: Tensor | None  # in nats, as given
    factor: Tensor | None
    largest: Tensor  # 0-D float64
    are_normal: Tensor  # whether every finite bias kept its digits

    @staticmethod
    def of(bias: Tensor | None, like: Tensor) -> BiasFactors:
        """Of the biases of one side."""
        zero = like.new_zeros((), dtype=torch.float64)
        if bias is None:
            return BiasFactors(None, None, zero, zero == 0)
        bits = bias.double() * LOG2_E
        largest = bits.max()
        largest = torch.where(largest == -torch.inf, zero, largest)
        factor = torch.exp2(bits - largest).float()
        are_normal = ((factor >= torch.finfo(torch.float32).tiny) | (bits == -torch.inf)).all()
        return BiasFactors(bias, factor, largest, are_normal)
