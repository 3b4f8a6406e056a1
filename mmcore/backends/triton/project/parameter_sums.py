"""Gradients of a projection's vectors, which are sums over rows, and what shares their launches.

    grad_norm_weight = Σ grad_x̂ · n,   grad_norm_bias = Σ grad_x̂,   grad_bias = Σ grad_z
    grad_z = (grad_y − y · along) · inverse_norm        y normalised; otherwise grad_z = grad_y

n: input_norm.py; along: l2_normalize.py. One launch sums slabs of rows, and its first programs
compute rows of grad_x. The next one adds the slabs up, and rounds grad_weight, which a product left
in float32.

Never stored: n; grad_z in float32.
Loop order: a program takes some columns and walks a slab of rows. A row of `parts` has the sums of
a slab: (K,) each of norm_weight and norm_bias, if they are wanted, then (D,) of bias. Slabs are
added up in one order.
Precision: float32 within a block of rows, float64 over blocks and slabs; results are rounded once.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import triton
import triton.language as tl

from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.project.input_norm import input_norm_backward


class OutputRows(NamedTuple):
    """What the backward reads of the normalisation of the output."""

    y: Any  # (N, D), contiguous
    inverse_norm: Any  # (N,) float32
    along: Any  # (N,) float32
    grad: Any  # (N, D), of y
    grad_stride: Any


class Vectors(NamedTuple):
    """The gradient of each vector."""

    norm_weight: Any  # (K,)
    norm_bias: Any  # (K,)
    bias: Any  # (D,)


class Steps(NamedTuple):
    """What the launch over rows computes."""

    HAS_ROWS: bool  # grad_x
    IS_LAYER: bool
    HAS_WEIGHT: bool  # of the norm
    SUMS_NORM: bool
    SUMS_BIAS: bool
    IS_NORMALIZED: bool


class Rounding(NamedTuple):
    """What the launch over slabs computes."""

    HAS_WEIGHT: bool  # grad_weight
    HAS_NORM: bool
    HAS_BIAS: bool


@triton.jit
def sum_norm_slab(
    norm, grad, part, slab, slab_rows, rows, columns, k,
    IS_LAYER: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the columns k over a slab, for norm_weight and norm_bias, into `part`."""
    grad_weight, grad_bias = tl.zeros([COLUMNS], tl.float64), tl.zeros([COLUMNS], tl.float64)
    end = tl.minimum((slab + 1) * slab_rows, rows)
    for start in range(slab * slab_rows, end, ROWS):
        row = start + tl.arange(0, ROWS)
        at_row, in_rows = row.to(tl.int64)[:, None], row < end
        inside = in_rows[:, None] & (k < columns)[None, :]
        g = tl.load(grad + at_row * columns + k[None, :], mask=inside, other=0)
        n = tl.load(norm.x + at_row * norm.stride + k[None, :], mask=inside, other=0)
        n = n.to(tl.float32)
        if IS_LAYER:
            n = n - tl.load(norm.mean + row, mask=in_rows, other=0)[:, None]
        n = n * tl.load(norm.inverse_std + row, mask=in_rows, other=0)[:, None]
        grad_weight += tl.sum(g * n, 0).to(tl.float64)
        grad_bias += tl.sum(g, 0).to(tl.float64)
    tl.store(part + k, grad_weight, mask=k < columns)
    tl.store(part + columns + k, grad_bias, mask=k < columns)


@triton.jit
def sum_output_slab(
    output, part, slab, slab_rows, rows, columns, k,
    IS_NORMALIZED: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Sums of the columns k of grad_z over a slab, into `part`."""
    total = tl.zeros([COLUMNS], tl.float64)
    end = tl.minimum((slab + 1) * slab_rows, rows)
    for start in range(slab * slab_rows, end, ROWS):
        row = start + tl.arange(0, ROWS)
        at_row, in_rows = row.to(tl.int64)[:, None], row < end
        inside = in_rows[:, None] & (k < columns)[None, :]
        g = tl.load(output.grad + at_row * output.grad_stride + k[None, :], mask=inside, other=0)
        g = g.to(tl.float32)
        if IS_NORMALIZED:
            y = tl.load(output.y + at_row * columns + k[None, :], mask=inside, other=0)
            along = tl.load(output.along + row, mask=in_rows, other=0)[:, None]
            inverse = tl.load(output.inverse_norm + row, mask=in_rows, other=0)[:, None]
            g = (g - y.to(tl.float32) * along) * inverse
        total += tl.sum(g, 0).to(tl.float64)
    tl.store(part + k, total, mask=k < columns)


@planned
@triton.jit
def project_rows_kernel(
    norm, output, grad, grad_x, parts, rows, columns, width, stride, row_programs, norm_tiles,
    tiles, slab_rows, STEPS: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    SLAB_BLOCK: tl.constexpr, SLAB_COLUMNS: tl.constexpr,
):  # fmt: skip
    """`tiles` programs for each slab: `norm_tiles` for the norm's columns, then the output's.

    `stride` is that of the rows of `parts`.
    """
    program = tl.program_id(0)
    if program < row_programs:
        if STEPS.HAS_ROWS:
            input_norm_backward(
                norm, grad, grad_x, program, rows, columns, STEPS.IS_LAYER, STEPS.HAS_WEIGHT,
                ROWS, COLUMNS,
            )  # fmt: skip
    else:
        slab, tile = (program - row_programs) // tiles, (program - row_programs) % tiles
        part = parts + slab.to(tl.int64) * stride
        if tile < norm_tiles:
            if STEPS.SUMS_NORM:
                k = tile * SLAB_COLUMNS + tl.arange(0, SLAB_COLUMNS)
                sum_norm_slab(
                    norm, grad, part, slab, slab_rows, rows, columns, k, STEPS.IS_LAYER,
                    SLAB_BLOCK, SLAB_COLUMNS,
                )  # fmt: skip
        elif STEPS.SUMS_BIAS:
            first_bias = 2 * columns if STEPS.SUMS_NORM else 0
            k = (tile - norm_tiles) * SLAB_COLUMNS + tl.arange(0, SLAB_COLUMNS)
            sum_output_slab(
                output, part + first_bias, slab, slab_rows, rows, width, k, STEPS.IS_NORMALIZED,
                SLAB_BLOCK, SLAB_COLUMNS,
            )  # fmt: skip


@triton.jit
def add_slabs(parts, stride, out, slabs, columns, k, ROWS: tl.constexpr, COLUMNS: tl.constexpr):
    """The columns k of a gradient from the sums of slabs."""
    total = tl.zeros([COLUMNS], tl.float64)
    for start in range(0, slabs, ROWS):
        slab = start + tl.arange(0, ROWS)
        inside = (slab < slabs)[:, None] & (k < columns)[None, :]
        at = slab.to(tl.int64)[:, None] * stride + k[None, :]
        total += tl.sum(tl.load(parts + at, mask=inside, other=0), 0)
    tl.store(out + k, total.to(tl.float32), mask=k < columns)


@planned
@triton.jit
def project_parameters_kernel(
    product, grad_weight, parts, out, columns, width, stride, slabs, weight_programs, norm_tiles,
    ROUNDING: tl.constexpr, BLOCK: tl.constexpr, SLABS: tl.constexpr, SLAB_COLUMNS: tl.constexpr,
):  # fmt: skip
    """First programs that round grad_weight, then one for each tile of columns of the vectors."""
    program = tl.program_id(0)
    if program < weight_programs:
        if ROUNDING.HAS_WEIGHT:
            at = program.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
            inside = at < tl.cast(columns, tl.int64) * width
            tl.store(grad_weight + at, tl.load(product + at, mask=inside, other=0), mask=inside)
    else:
        tile = program - weight_programs
        if tile < norm_tiles:
            if ROUNDING.HAS_NORM:
                k = tile * SLAB_COLUMNS + tl.arange(0, SLAB_COLUMNS)
                add_slabs(parts, stride, out.norm_weight, slabs, columns, k, SLABS, SLAB_COLUMNS)
                add_slabs(
                    parts + columns, stride, out.norm_bias, slabs, columns, k, SLABS, SLAB_COLUMNS
                )
        elif ROUNDING.HAS_BIAS:
            first_bias = 2 * columns if ROUNDING.HAS_NORM else 0
            k = (tile - norm_tiles) * SLAB_COLUMNS + tl.arange(0, SLAB_COLUMNS)
            add_slabs(parts + first_bias, stride, out.bias, slabs, width, k, SLABS, SLAB_COLUMNS)
