"""One similarity matrix as the ops describe it, and what the kernels need of it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from mmcore.backends.triton.launch import (
    ProductTile,
    is_interpreted,
    product_tile,
    row_tile,
    unit_stride,
)
from mmcore.backends.triton.positives import row_dots_kernel

LOG2_E = 1.0 / math.log(2)
# Beyond this bound on |s|·log2(e) most rows of real data lie too far below it for a shared shift.
LARGEST_SHARED_BOUND = 200


class Matrix(NamedTuple):
    """y, the columns' ids among it, is spelled out where it is x."""

    x: Tensor
    y: Tensor
    scale: Tensor
    bias: Tensor | None
    row_bias: Tensor | None
    col_bias: Tensor | None
    target: Tensor | None
    row_label: Tensor | None
    col_label: Tensor | None
    row_group: Tensor | None
    col_group: Tensor | None
    denominator: str
    has_columns: bool
    multiplies_bfloat16: bool

    @staticmethod
    def of(*described: Any) -> Matrix:
        """From the arguments of the op."""
        matrix = Matrix(*described)
        x, y = matrix.x, described[1]
        matrix = matrix._replace(x=unit_stride(x), y=unit_stride(x if y is None else y))
        if y is not None:
            return matrix
        return matrix._replace(col_label=matrix.row_label, col_group=matrix.row_group)

    @property
    def shape(self) -> tuple[int, int]:
        """N and M."""
        return self.x.shape[0], self.y.shape[0]

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
        return product_tile(self.x, self.product_dtype != torch.float32, kind)

    def ids(self) -> tuple[Tensor, ...]:
        """target, labels and groups; x stands in for what there is not."""
        vectors = (self.target, self.row_label, self.col_label, self.row_group, self.col_group)
        return tuple(self.x if ids is None else ids.contiguous() for ids in vectors)

    def flags(self) -> dict[str, Any]:
        """The switches of the kernels."""
        return {
            "HAS_TARGET": self.target is not None,
            "HAS_LABELS": self.row_label is not None,
            "HAS_GROUPS": self.row_group is not None,
            "DEPTH": self.x.shape[1],
            "ROUNDS": self.rounds,
            "WIDENS": is_interpreted() and self.product_dtype == torch.bfloat16,
            "PRECISION": product_precision(),
        }

    def offset(self) -> Tensor:
        """The scalar bias, float64."""
        return (
            self.scale.new_zeros((), dtype=torch.float64)
            if self.bias is None
            else self.bias.double()
        )

    def target_logits(self) -> Tensor:
        """(N,) float64, every bias included: of −1 anything, of what is no column NaN."""
        assert self.target is not None
        logits = (
            self.scale.double() * row_dots(self.x, self.y, self.target, self.rounds) + self.offset()
        )
        if self.row_bias is not None:
            logits = logits + self.row_bias.double()
        if self.col_bias is not None:
            known = self.target.clamp(0, self.shape[1] - 1)
            logits = logits + self.col_bias.double()[known]
        return logits


def product_precision() -> str:
    """How tensor cores may multiply float32, as torch is told."""
    return "tf32" if torch.get_float32_matmul_precision() == "high" else "ieee"


def row_dots(x: Tensor, y: Tensor, target: Tensor | None = None, rounds: bool = False) -> Tensor:
    """⟨x_i, y_target(i)⟩ or ⟨x_i, y_i⟩, float64."""
    rows, depth = x.shape
    out = torch.empty(rows, dtype=torch.float64, device=x.device)
    tile = row_tile(depth)
    row_dots_kernel[(triton.cdiv(rows, tile.ROWS),)](
        x, y, x if target is None else target.contiguous(), out, rows, y.shape[0], depth,
        x.stride(0), y.stride(0), target is not None, rounds, *tile,
    )  # fmt: skip
    return out


class Plan(NamedTuple):
    """The shared shift and what it was taken from, all on the device."""

    numbers: Tensor  # (3,) float32: log2(e)·scale in two parts, shift
    shift: Tensor  # 0-D float64
    is_usable: Tensor  # 0-D bool

    @staticmethod
    def of(matrix: Matrix) -> Plan:
        """The largest possible E is 2⁸⁰: sums, and their reciprocals, stay within float32."""
        a = matrix.scale.double() * LOG2_E
        high = a.float()
        low = torch.where(high.isfinite(), (a - high.double()).float(), 0.0)
        # Rounding to bfloat16 lengthens a row by at most one part in 256.
        bound = a.abs() * largest_norm(matrix.x) * largest_norm(matrix.y) * 1.004
        shift = bound.ceil() - 80
        usable = bound <= LARGEST_SHARED_BOUND
        shift = torch.where(usable, shift, 0.0)
        return Plan(torch.stack([high, low, shift.float()]), shift, usable)


def largest_norm(x: Tensor) -> Tensor:
    """max_i ‖x_i‖, 0-D float64."""
    return torch.linalg.vector_norm(x, dim=1, dtype=torch.float32).max().double()


class BiasFactors(NamedTuple):
    """2^(bias − largest) ≤ 1 of one side, float32, and log2(e)·largest."""

    factor: Tensor | None
    largest: Tensor  # 0-D float64
    are_normal: Tensor  # whether every finite bias kept its digits

    @staticmethod
    def of(bias: Tensor | None, like: Tensor) -> BiasFactors:
        """Of biases in nats."""
        zero = like.new_zeros((), dtype=torch.float64)
        if bias is None:
            return BiasFactors(None, zero, zero == 0)
        bits = bias.double() * LOG2_E
        largest = bits.max()
        largest = torch.where(largest == -torch.inf, zero, largest)
        factor = torch.exp2(bits - largest).float()
        are_normal = ((factor >= torch.finfo(torch.float32).tiny) | (bits == -torch.inf)).all()
        return BiasFactors(factor, largest, are_normal)
