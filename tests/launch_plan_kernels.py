"""Kernels that take arguments of every kind and do nearly nothing, for launch_plan_reports.py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from mmcore.backends.triton.launch_plan import planned


class Pair(NamedTuple):
    first: Any
    second: Any


class Twin(NamedTuple):
    """As Pair, with other names."""

    left: Any
    right: Any


class Sizes(NamedTuple):
    ROWS: int
    IS_WIDE: bool


@planned
@triton.jit(do_not_specialize=["whole"], do_not_specialize_on_alignment=["unaligned"])
def every_kind_kernel(out, group, number, whole, unaligned, real, flag, nothing, SIZES: tl.constexpr, KIND: tl.constexpr = "sum"):  # fmt: skip # noqa: E501
    if KIND == "sum":
        tl.store(out, 0)


@planned
@triton.jit
def descriptor_kernel(out, source, pair):
    tl.store(out, tl.sum(source.load([0, 0])).to(tl.float32))


@planned
@triton.jit
def volume_kernel(out, source):
    tl.store(out, tl.sum(source.load([0, 0, 0]).reshape(512)).to(tl.float32))


@planned
@triton.jit
def plain_kernel(out):
    tl.store(out, 0)


def tensor(dtype: torch.dtype = torch.float32, shift: int = 0) -> Tensor:
    """Memory that begins at a multiple of 16 bytes, or `shift` numbers later."""
    return torch.empty(64, dtype=dtype)[shift:]


def usual() -> dict[str, Any]:
    """Arguments of every_kind_kernel."""
    return {
        "out": tensor(), "group": Pair(tensor(torch.bfloat16), Pair(3, 0.5)), "number": 5,
        "whole": 5, "unaligned": 5, "real": 0.3, "flag": True, "nothing": None,
        "SIZES": Sizes(64, False),
    }  # fmt: skip


INTEGERS = (0, 1, 2, 16, 17, -1, -16, 2**31 - 1, 2**31, 2**31 + 1, -(2**31), 2**40, 2**63 + 3)


def other_values() -> Iterator[tuple[str, Any]]:
    """One argument of every_kind_kernel, and what else it may be."""
    for dtype in (torch.bfloat16, torch.int64, torch.int8, torch.float64):
        yield "out", tensor(dtype)
    yield "out", tensor(shift=1)
    yield "out", tensor(shift=4)
    yield "out", torch.nn.Parameter(tensor())
    yield "out", torch.empty(0)
    for number in INTEGERS:
        yield "number", number
        yield "group", Pair(tensor(torch.bfloat16), Pair(number, 0.5))
    for number in (1, 16, 2**31):
        yield "whole", number
        yield "unaligned", number
    for real in (0.0, -0.0, 1.0, 1e300, float("nan"), 1):
        yield "real", real
    yield "flag", False
    yield "nothing", 16
    yield "nothing", tensor(shift=1)
    yield "group", Pair(None, Pair(tensor(shift=2), True))
    yield "group", (tensor(torch.bfloat16), 3, ())
    yield "group", Twin(tensor(torch.bfloat16), Pair(3, 0.5))
    for sizes in (Sizes(64, True), Sizes(1, False), Sizes(True, False), Sizes(1.0, False)):
        yield "SIZES", sizes
    yield "KIND", "none"
    yield "num_warps", 8


def descriptors() -> Iterator[TensorDescriptor]:
    """A small matrix, a large one, one within another, one whose outside is not a number."""
    for columns, width in ((64, 64), (8192, 8192), (64, 128), (56, 64)):
        matrix = torch.empty(64, width, dtype=torch.float16)[:, :columns]
        yield TensorDescriptor.from_tensor(matrix, [16, 32])
        yield TensorDescriptor.from_tensor(matrix, [16, 64], padding="nan")


def volumes() -> Iterator[TensorDescriptor]:
    """Of three dimensions with different strides."""
    for rows in (24, 40):
        volume = torch.empty(4, rows, 64, dtype=torch.float16)
        yield TensorDescriptor.from_tensor(volume, [2, 8, 32])
