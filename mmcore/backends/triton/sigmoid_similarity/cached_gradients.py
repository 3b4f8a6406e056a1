"""Gradients of a sigmoid objective from products that its forward cached for a = 1 and c = −1.

    grad_x_i = a·scale·kept_i + (a + c)·scale·y_target(i)
    grad_y_j = a·scale·kept_j + (a + c)·scale·Σ_{i: target(i) = j} x_i
    grad_scale = a·kept + (a + c)·Σ_i ⟨x_i, y_target(i)⟩        grad_bias = a·kept + Σ_i (a + c)

a and c are the upstream gradients of total and positive. In every loss a + c is 0, but only the
device knows that. The kernel reads x and y only if a + c is not 0. Cached are G·y and Gᵀ·x, of
float16 features divided by the unit of a = 1 (float64.py), so that each gradient is rounded once.

Never stored: the logits and G, which this kernel does not compute.
Loop order: a program takes ROWS rows of x and as many of y, and walks their columns. For a column
that several rows name, it reads all targets.
Precision: float32; the gradients of scale and bias are float64 sums.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from mmcore.backends.inputs import SigmoidSums, SigmoidUpstream, SimilarityInputs
from mmcore.backends.triton.arguments import Size
from mmcore.backends.triton.float64 import unit_of
from mmcore.backends.triton.inputs import ids, pointer, shape, strides
from mmcore.backends.triton.launch import row_tile
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.norms_and_targets import tally_kernel
from mmcore.backends.triton.sigmoid_similarity.pass_over_matrix import Products

# A program holds numbers of five matrices at a time, too many for the registers of four warps.
NUM_WARPS = 8
TALLIED_ROWS = 1024


@triton.jit
def load_features(features, row, in_rows, stride, k, in_depth):
    at = features + row.to(tl.int64)[:, None] * stride + k
    return tl.load(at, mask=in_rows[:, None] & in_depth, other=0).to(tl.float32)


@triton.jit
def rows_naming(x, target, tally, j, size, x_stride, k, in_depth):
    """Σ x_i over the rows i that name each of the columns j."""
    named = tl.load(tally + j, mask=j < size.columns, other=0)
    count = named >> 32
    result = load_features(x, named & 4294967295, count == 1, x_stride, k, in_depth)
    if tl.max(count, 0) > 1:
        for i in range(0, size.rows):
            is_named = (count > 1) & (tl.load(target + i) == j)
            result += load_features(x, j * 0 + i, is_named, x_stride, k, in_depth)
    return result


@planned
@triton.jit
def from_cached_kernel(
    x, y, target, tally, kept, kept_sums, upstream, scale, grad, parts, size, depth, strides,
    HAS_Y: tl.constexpr, IS_FLOAT16: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    rows, columns = size.rows, size.columns
    i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    at_row, in_rows, in_columns = i.to(tl.int64)[:, None] * depth, i < rows, i < columns
    grad_total = tl.load(upstream.total)
    weight = grad_total + tl.load(upstream.positive)
    wide_scale = tl.load(scale).to(tl.float64)
    by = (grad_total * wide_scale * unit_of(wide_scale * 0.0 + 1.0, IS_FLOAT16)).to(tl.float32)
    factor = (weight * wide_scale).to(tl.float32)
    has_weight = weight != 0
    j = tl.load(target + i, mask=in_rows, other=-1)
    names = (j >= 0) & (j < columns)
    products = tl.zeros([ROWS], tl.float64)
    for start in range(0, depth, COLUMNS):
        k = start + tl.arange(0, COLUMNS)[None, :]
        in_depth = k < depth
        grad_x = tl.load(kept.x + at_row + k, mask=in_rows[:, None] & in_depth, other=0) * by
        grad_y = grad_x
        if HAS_Y:
            grad_y = tl.load(kept.y + at_row + k, mask=in_columns[:, None] & in_depth, other=0) * by
        if has_weight:
            left = load_features(x, i, in_rows, strides.x, k, in_depth)
            right = load_features(y, j, names, strides.y, k, in_depth)
            products += tl.sum(left.to(tl.float64) * right.to(tl.float64), 1)
            grad_x += factor * right
            naming = rows_naming(x, target, tally, i, size, strides.x, k, in_depth)
            if HAS_Y:
                grad_y += factor * naming
            else:
                grad_x += factor * naming
        tl.store(grad.x + at_row + k, grad_x, mask=in_rows[:, None] & in_depth)
        if HAS_Y:
            tl.store(grad.y + at_row + k, grad_y, mask=in_columns[:, None] & in_depth)
    grad_scale = weight * tl.sum(products, 0)
    grad_bias = weight * tl.sum(names.to(tl.float64), 0)
    if tl.program_id(0) == 0:
        grad_scale += grad_total * tl.load(kept_sums)
        grad_bias += grad_total * tl.load(kept_sums + 1)
    tl.store(parts + tl.program_id(0), grad_scale)
    tl.store(parts + tl.num_programs(0) + tl.program_id(0), grad_bias)


def as_products(kept: Tensor, inputs: SimilarityInputs) -> Products:
    """Views of what is kept, in the shapes of x and y."""
    x, y = inputs.x, inputs.y
    of_x = kept.as_strided(x.shape, (x.shape[1], 1))
    of_y = None if y is None else kept.as_strided(y.shape, (y.shape[1], 1), x.numel())
    return Products(of_x, of_y)


def from_cached(
    inputs: SimilarityInputs, sums: SigmoidSums, upstream: SigmoidUpstream, rounds: bool
) -> tuple[Tensor | None, ...]:
    """Gradients of x, y, scale and bias from products at a = 1, c = −1."""
    x, y, (rows, columns) = inputs.x, inputs.keys, shape(inputs)
    target, kept = ids(inputs).target, as_products(sums.kept, inputs)
    has_y, tile = inputs.y is not None, row_tile(x.shape[1])
    tally = x.new_zeros(columns, dtype=torch.int64)
    tally_kernel[(triton.cdiv(rows, TALLIED_ROWS),)](
        target, tally, rows, columns, ROWS=TALLIED_ROWS
    )
    grad_x, grad_y = (
        torch.empty(z.shape, dtype=z.dtype if rounds else torch.float32, device=x.device)
        for z in ((x, y) if has_y else (x, x[:0]))
    )
    kept = kept._replace(y=pointer(kept.y, kept.x))
    programs = triton.cdiv(max(rows, columns), tile.ROWS)
    parts = x.new_empty((2, programs), dtype=torch.float64)
    from_cached_kernel[(programs,)](
        x, y, target, tally, kept, sums.kept_sums, upstream, inputs.scale,
        Products(grad_x, grad_y), parts, Size(rows, columns), x.shape[1], strides(inputs),
        HAS_Y=has_y, IS_FLOAT16=x.dtype == torch.float16, **tile._asdict(), num_warps=NUM_WARPS,
    )  # fmt: skip
    return grad_x, grad_y if has_y else None, *parts.sum(1)
