"""What a pass of sigmoid_similarity reads: numbers of the whole matrix, and G of the targets.

    s_i = scale·⟨x_i, y_t⟩ + bias, t = target(i)
    g_i = (a + c) − a·σ(−s_i)
    parts = Σ_i softplus(s_i), Σ_i s_i        of the loss of SigLIP Σ_i softplus(−s_i)

a and c are the upstream gradients of total and positive. Both are divided by a power of two, the
unit (float64.py), so that G keeps its digits in the dtype that is multiplied. The loss of SigLIP is
(total − positive) / N. With its upstream gradient g, a is g / N and c is −g / N: G is formed for 1
and −1, and what it is multiplied with has the factor g / N.

Never stored: the targets, where they are the diagonal.
Loop order: a program takes ROWS rows of x and walks their columns; the first one stores the
numbers. Without targets there is no other.
Precision: float64. The pass reads float32 numbers: log2(e) times scale and bias in two parts each.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from mmcore.backends.inputs import SigmoidUpstream, SimilarityInputs
from mmcore.backends.triton.arguments import Size
from mmcore.backends.triton.float64 import in_bits, split, unit_of
from mmcore.backends.triton.inputs import pointer, shape, strides
from mmcore.backends.triton.launch import row_tile, whole
from mmcore.backends.triton.launch_plan import planned
from mmcore.backends.triton.norms_and_targets import load_wide

# Of Terms.numbers: scale, bias, log2(e) times both in two parts each, a at 8, a + c at 9. G of the
# targets begins at TARGETS, so that one pointer with an offset serves for all.
TARGETS = 16
# Of Terms.wide: the factor of sums of G, and that of products with G, scale times as large. The
# first is the unit, for a loss times g / N. Parts of the targets follow, two of each program.
WIDE_NUMBERS = 2


class Terms(NamedTuple):
    """What the launches of a pass read; all on the device."""

    numbers: Any  # (TARGETS + N,) float32
    wide: Any  # (WIDE_NUMBERS + 2·programs,) float64


class Mode(NamedTuple):
    """What a pass is for."""

    TARGET: str  # "none", "given", or "diagonal", which no vector names
    HAS_BIAS: bool
    HAS_UPSTREAM: bool  # without, gradients are those of total − positive, or of the loss
    IS_LOSS: bool  # of SigLIP: the mean over the rows
    IS_FLOAT16: bool


def mode_of(inputs: SimilarityInputs, has_upstream: bool, is_loss: bool) -> Mode:
    """The loss of SigLIP has the diagonal for positives."""
    target = "none" if inputs.target is None else "given"
    return Mode(
        "diagonal" if is_loss else target, inputs.bias is not None, has_upstream, is_loss,
        inputs.x.dtype == torch.float16,
    )  # fmt: skip


@triton.jit
def log1p(z):
    """log(1 + z), float64, which keeps the digits of small z: the error of 1 + z cancels."""
    above = 1.0 + z
    rounded = above - 1.0
    is_lost = rounded == 0
    return tl.where(is_lost, z, tl.log(above) * (z / tl.where(is_lost, 1.0, rounded)))


@triton.jit
def upstream_gradients(upstream, scale, MODE: tl.constexpr):
    """a and c; of a loss, or without upstream gradients, those of total − positive: 1 and −1."""
    grad_total, grad_positive = scale * 0.0 + 1.0, scale * 0.0 - 1.0
    if MODE.HAS_UPSTREAM and not MODE.IS_LOSS:
        grad_total, grad_positive = tl.load(upstream.total), tl.load(upstream.positive)
    return grad_total, grad_positive


@triton.jit
def store_numbers(
    out, upstream, scale, bias, grad_total, grad_positive, unit, rows, MODE: tl.constexpr
):
    tl.store(out.numbers, scale.to(tl.float32))
    tl.store(out.numbers + 1, bias.to(tl.float32))
    high, low = split(in_bits(scale))
    tl.store(out.numbers + 2, high)
    tl.store(out.numbers + 3, low)
    high, low = split(in_bits(bias))
    tl.store(out.numbers + 4, high)
    tl.store(out.numbers + 5, low)
    tl.store(out.numbers + 8, grad_total.to(tl.float32))
    tl.store(out.numbers + 9, (grad_total + grad_positive).to(tl.float32))
    if MODE.IS_LOSS:
        unit = unit / tl.cast(rows, tl.float64)
        if MODE.HAS_UPSTREAM:
            unit = unit * tl.load(upstream.total).to(tl.float64)
    tl.store(out.wide, unit)
    tl.store(out.wide + 1, unit * scale)


@planned
@triton.jit
def sigmoid_prepare_kernel(
    x, y, target, scale, bias, upstream, out, size, depth, strides, MODE: tl.constexpr,
    ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """`upstream.total` of a loss is its own upstream gradient."""
    scale = tl.load(scale).to(tl.float64)
    bias_of_all = scale * 0.0
    if MODE.HAS_BIAS:
        bias_of_all = tl.load(bias).to(tl.float64)
    grad_total, grad_positive = upstream_gradients(upstream, scale, MODE)
    unit = unit_of(tl.maximum(tl.abs(grad_total), tl.abs(grad_positive)), MODE.IS_FLOAT16)
    grad_total, grad_positive = grad_total / unit, grad_positive / unit
    if tl.program_id(0) == 0:
        store_numbers(
            out, upstream, scale, bias_of_all, grad_total, grad_positive, unit, size.rows, MODE
        )
    if MODE.TARGET != "none":
        i = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
        in_rows = i < size.rows
        j, has_target = i, in_rows
        if MODE.TARGET == "given":
            j = tl.load(target + i, mask=in_rows, other=-1)
            has_target = j != -1
        names = in_rows & (j >= 0) & (j < size.columns)
        s = tl.zeros([ROWS], tl.float64)
        for start in range(0, depth, COLUMNS):
            left = load_wide(x, i, in_rows, strides.x, start, depth, COLUMNS)
            right = load_wide(y, j, names, strides.y, start, depth, COLUMNS)
            s += tl.sum(left * right, 1)
        s = tl.where(names | (has_target == 0), s * scale + bias_of_all, float("nan"))
        z = tl.exp(-tl.abs(s))
        softplus = log1p(z) + 0.0 * s  # NaN where s is NaN
        if MODE.IS_LOSS:
            softplus += tl.where(s < 0, -s, 0.0)
        else:
            softplus += tl.where(s > 0, s, 0.0)
        complement = tl.where(s > 0, z, 1.0) / (1.0 + z)
        g = grad_total + grad_positive - grad_total * complement
        tl.store(out.numbers + 16 + i, g.to(tl.float32), mask=in_rows)
        part = out.wide + 2 + 2 * tl.program_id(0)
        tl.store(part, tl.sum(tl.where(has_target, softplus, 0.0), 0))
        tl.store(part + 1, tl.sum(tl.where(has_target, s, 0.0), 0))


def prepared_terms(
    inputs: SimilarityInputs, mode: Mode, upstream: SigmoidUpstream | None
) -> tuple[Terms, int]:
    """Launches the kernel; also how many parts there are of the targets.

    The upstream gradient of a loss stands in the place of that of total.
    """
    x, y, (rows, columns) = inputs.x, inputs.keys, shape(inputs)
    tile = row_tile(x.shape[1])
    programs = 0 if mode.TARGET == "none" else whole(rows, tile.ROWS)
    terms = Terms(
        x.new_empty(TARGETS + (rows if programs else 0), dtype=torch.float32),
        x.new_empty(WIDE_NUMBERS + 2 * programs, dtype=torch.float64),
    )
    sigmoid_prepare_kernel[(max(programs, 1),)](
        x, y, pointer(inputs.target, x), inputs.scale, pointer(inputs.bias, x),
        upstream or SigmoidUpstream(x, x), terms, Size(rows, columns), x.shape[1],
        strides(inputs), MODE=mode, **tile._asdict(),
    )  # fmt: skip
    return terms, programs
