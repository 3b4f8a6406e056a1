"""Sums for sigmoid objectives, and their gradients in the same pass: the launches."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mmcore.backends.calls import as_inputs
from mmcore.backends.triton.gradient_terms import unit_of
from mmcore.backends.triton.launch import chunk_rows, within_memory
from mmcore.backends.triton.matrix import LOG2_E, Matrix, split, target_products
from mmcore.backends.triton.products import add_product, product, row_pieces
from mmcore.backends.triton.sigmoid_tile import sigmoid_tile_kernel

# Each leaves four sums: 16 MiB of them.
MOST_PROGRAMS = 2**19


class Upstream(NamedTuple):
    """Gradients of both sums, 0-D float64, and where the products with G go, float32."""

    of_total: Tensor
    of_positive: Tensor
    of_x: Tensor  # G·y; where y is x (G + Gᵀ)·x
    of_y: Tensor | None  # Gᵀ·x; where y is x none


class Pass(NamedTuple):
    """What one pass over the matrix adds up to."""

    total: Tensor  # 0-D float64
    positive: Tensor
    of_scale: Tensor  # Σ G·⟨x, y⟩
    of_bias: Tensor  # Σ G


def sigmoid_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, keeps_gradients = arguments
    matrix = _matrix(*described)
    one = torch.ones((), dtype=torch.float64, device=matrix.x.device)
    if not keeps_gradients:
        found = _run(matrix, None)
        nothing = matrix.x.new_empty(0, dtype=torch.float32)
        return found.total, found.positive, nothing, one.new_empty(0)
    numbers = matrix.x.numel() + (0 if matrix.y is None else matrix.y.numel())
    kept = matrix.x.new_empty(numbers, dtype=torch.float32)
    unit = unit_of(matrix, one)
    found = _run(matrix, Upstream(one / unit, -one / unit, *_sides(kept, matrix)))
    kept.mul_((matrix.scale.double() * unit).float())
    return found.total, found.positive, kept, torch.stack([found.of_scale, found.of_bias]) * unit


def sigmoid_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept, kept_sums, grad_total, grad_positive, wanted = arguments
    matrix = _matrix(*described)
    if kept.numel() > 0 and matrix.target is not None:
        gradients = _from_kept(matrix, kept, kept_sums, grad_total, grad_positive)
    else:
        of_x = torch.empty(matrix.x.shape, dtype=torch.float32, device=matrix.x.device)
        of_y = None
        if matrix.y is not None:
            of_y = torch.empty(matrix.y.shape, dtype=torch.float32, device=matrix.x.device)
        upstream = (grad_total.double(), grad_positive.double())
        unit = unit_of(matrix, *upstream)
        of_total, of_positive = (part / unit for part in upstream)
        found = _run(matrix, Upstream(of_total, of_positive, of_x, of_y))
        factor = (matrix.scale.double() * unit).float()
        products = (None if side is None else side.mul_(factor) for side in (of_x, of_y))
        gradients = (*products, found.of_scale * unit, found.of_bias * unit)
    return as_inputs(gradients, described[:4], wanted)


def _matrix(x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *rest: Any) -> Matrix:
    *pairs, multiplies_bfloat16 = rest
    return Matrix.of(x, y, scale, bias, None, None, *pairs, "all", True, multiplies_bfloat16)


def _sides(kept: Tensor, matrix: Matrix) -> tuple[Tensor, Tensor | None]:
    """Views of what is kept, in the shapes of x and y."""
    of_x = kept[: matrix.x.numel()].view(matrix.x.shape)
    return of_x, None if matrix.y is None else kept[matrix.x.numel() :].view(matrix.y.shape)


def _from_kept(
    matrix: Matrix, kept: Tensor, kept_sums: Tensor, of_total: Tensor, of_positive: Tensor
) -> tuple[Tensor | None, ...]:
    """From the gradients at a = 1, c = −1: those times a, and (a + c) times those of the positives.

    Whether a + c is 0, as it is in every loss, is known to the device alone.
    """
    assert matrix.target is not None
    x, y = matrix.x, matrix.keys
    known = matrix.target.clamp(0, matrix.shape[1] - 1)
    weight = torch.where(matrix.target == known, of_total + of_positive, 0.0)
    factor = (weight * matrix.scale.double()).float()[:, None]
    grad_x, grad_y = (
        None if side is None else side * of_total.float() for side in _sides(kept, matrix)
    )
    assert grad_x is not None
    to_y = grad_x if grad_y is None else grad_y
    for rows in row_pieces(x):
        grad_x[rows].add_(factor[rows] * y[known[rows]])
        # index_put_ sorts its indices: unlike index_add_ it adds in one order.
        to_y.index_put_((known[rows],), factor[rows] * x[rows], accumulate=True)
    of_scale = kept_sums[0] * of_total + (weight * target_products(matrix, known)).sum()
    return grad_x, grad_y, of_scale, kept_sums[1] * of_total + weight.sum()


def _run(matrix: Matrix, upstream: Upstream | None) -> Pass:
    """One pass; without upstream gradients G is not formed, and chunks are large."""
    (rows, columns), tile = matrix.shape, matrix.tile("sigmoid")
    block = tile.BM
    size = min(rows, block * max(1, MOST_PROGRAMS // triton.cdiv(columns, tile.BN)))
    if upstream is not None:
        held = chunk_rows(matrix.x, columns, matrix.product_dtype.itemsize, block)
        size = min(triton.cdiv(size, block) * block, held)
    return within_memory(partial(_pass_by_chunks, matrix, upstream), size, block)


def _pass_by_chunks(matrix: Matrix, upstream: Upstream | None, size: int) -> Pass:
    (rows, columns), x, dtype = matrix.shape, matrix.x, matrix.product_dtype
    left, right = x.to(dtype), matrix.keys.to(dtype)
    at_target, logits = _target_terms(matrix, upstream)
    sums = torch.zeros(4, dtype=torch.float64, device=x.device)
    chunk = None if upstream is None else torch.empty((size, columns), dtype=dtype, device=x.device)
    if upstream is not None and upstream.of_y is not None:
        upstream.of_y.zero_()
    for first in range(0, rows, size):
        count = min(size, rows - first)
        g = None if chunk is None else chunk[:count]
        sums += _run_chunk(matrix, upstream, at_target, first, count, g)
        if upstream is not None and g is not None:
            upstream.of_x[first : first + count].copy_(product(g, right))
            if upstream.of_y is not None:
                add_product(upstream.of_y, g.T, left[first : first + count])
    total, positive = sums[0] + sums[1], sums[1].clone()
    if logits is not None:
        total = total - F.logsigmoid(-logits).sum()
        positive = positive + torch.where(logits == -torch.inf, 0.0, logits).sum()
    return Pass(total, positive, of_scale=sums[3], of_bias=sums[2])


def _run_chunk(
    matrix: Matrix, upstream: Upstream | None, at_target: Tensor, first: int, count: int,
    g: Tensor | None,
) -> Tensor:  # fmt: skip
    """The four sums of `count` rows from `first` on; fills g, if there is one."""
    tile, x, columns, ids = matrix.tile("sigmoid"), matrix.x, matrix.shape[1], matrix.ids()
    weights = x
    if upstream is not None:
        both = upstream.of_total + upstream.of_positive
        weights = torch.stack([upstream.of_total, both]).float()
    programs = triton.cdiv(count, tile.BM) * triton.cdiv(columns, tile.BN)
    parts = torch.zeros((4, programs), dtype=torch.float64, device=x.device)
    out = x if g is None else g
    sigmoid_tile_kernel[(programs,)](
        *matrix.features(tile), _numbers(matrix), weights, ids[0], at_target, *ids[1:], out, *parts,
        first, count, columns, x.stride(0), matrix.keys.stride(0), out.stride(0),
        HAS_GRADIENTS=g is not None, IS_SYMMETRIC=matrix.y is None, **matrix.settings(tile),
    )  # fmt: skip
    return parts.sum(1)


def _numbers(matrix: Matrix) -> Tensor:
    """scale, bias, then both times log2(e) in two parts each; float32."""
    values = torch.stack([matrix.scale.double(), matrix.offset()])
    return torch.cat([values.float(), torch.stack(split(values * LOG2_E), 1).flatten()])


def _target_terms(matrix: Matrix, upstream: Upstream | None) -> tuple[Tensor, Tensor | None]:
    """G at each row's target, and its logit, −inf where there is none; from float64."""
    if matrix.target is None:
        return matrix.x, None
    logits = torch.where(matrix.target == -1, -torch.inf, matrix.target_logits())
    if upstream is None:
        return matrix.x, logits
    of_total, of_positive = upstream[:2]
    return (of_total + of_positive - of_total * torch.sigmoid(-logits)).float(), logits
