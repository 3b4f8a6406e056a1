"""Sums for sigmoid objectives, and their gradients in the same pass: the launches."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mmcore.backends.calls import as_inputs
from mmcore.backends.triton.launch import chunk_rows, within_memory
from mmcore.backends.triton.matrix import LOG2_E, Matrix, split, target_products
from mmcore.backends.triton.products import add_product, product
from mmcore.backends.triton.sigmoid_tile import sigmoid_tile_kernel


class Pass(NamedTuple):
    """What one pass over the matrix finds; gradients only where they are wanted, not scaled yet."""

    total: Tensor  # 0-D float64
    positive: Tensor
    of_x: Tensor | None  # G·y; where y is x (G + Gᵀ)·x
    of_y: Tensor | None  # Gᵀ·x; where y is x none
    of_bias: Tensor  # Σ G
    of_scale: Tensor  # Σ G·⟨x, y⟩


def sigmoid_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, keeps_gradients = arguments
    matrix = _matrix(*described)
    one = torch.ones((), dtype=torch.float64, device=matrix.x.device)
    found = _run(matrix, (one, -one) if keeps_gradients else None)
    if not keeps_gradients:
        empty = matrix.x.new_empty(0, dtype=torch.float32)
        return found.total, found.positive, empty, one.new_empty(0)
    parts = [part.flatten() for part in (found.of_x, found.of_y) if part is not None]
    kept = (parts[0] if len(parts) == 1 else torch.cat(parts)).mul_(matrix.scale.float())
    return found.total, found.positive, kept, torch.stack([found.of_scale, found.of_bias])


def sigmoid_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept, kept_sums, grad_total, grad_positive, wanted = arguments
    matrix = _matrix(*described)
    if kept.numel() > 0 and matrix.target is not None:
        gradients = _from_kept(matrix, kept, kept_sums, grad_total, grad_positive)
    else:
        found = _run(matrix, (grad_total.double(), grad_positive.double()))
        scale = matrix.scale.float()
        products = (None if part is None else part * scale for part in (found.of_x, found.of_y))
        gradients = (*products, found.of_scale, found.of_bias)
    return as_inputs(gradients, described[:4], wanted)


def _matrix(x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *rest: Any) -> Matrix:
    *pairs, multiplies_bfloat16 = rest
    return Matrix.of(x, y, scale, bias, None, None, *pairs, "all", True, multiplies_bfloat16)


def _from_kept(
    matrix: Matrix, kept: Tensor, kept_sums: Tensor, of_total: Tensor, of_positive: Tensor
) -> tuple[Tensor | None, ...]:
    """From the gradients at a = 1, c = −1: those times a, and (a + c) times those of the positives.

    Whether a + c is 0, as it is in every loss, is known to the device alone.
    """
    assert matrix.target is not None
    known = matrix.target.clamp(0, matrix.shape[1] - 1)
    weight = torch.where(matrix.target == known, of_total + of_positive, 0.0)
    factor = (weight * matrix.scale.double()).float()[:, None]
    of_x = factor * matrix.keys[known]
    # index_put_ sorts its indices: unlike index_add_ it adds in one order.
    of_y = torch.zeros(matrix.keys.shape, dtype=torch.float32, device=matrix.x.device)
    of_y.index_put_((known,), factor * matrix.x, accumulate=True)
    grad_y = None
    if matrix.y is None:
        grad_x = kept.view(matrix.x.shape) * of_total + of_x + of_y
    else:
        parts = kept.split([matrix.x.numel(), matrix.keys.numel()])
        grad_x = parts[0].view(matrix.x.shape) * of_total + of_x
        grad_y = parts[1].view(matrix.keys.shape) * of_total + of_y
    of_scale = kept_sums[0] * of_total + (weight * target_products(matrix, known)).sum()
    return grad_x, grad_y, of_scale, kept_sums[1] * of_total + weight.sum()


def _run(matrix: Matrix, upstream: tuple[Tensor, Tensor] | None) -> Pass:
    """One pass; without upstream gradients G is not formed, and all rows are one chunk."""
    (rows, columns), block = matrix.shape, matrix.tile("sigmoid").BM
    size = rows
    if upstream is not None:
        size = chunk_rows(matrix.x, columns, matrix.product_dtype.itemsize, block)
    return within_memory(partial(_pass_by_chunks, matrix, upstream), size, block)


def _pass_by_chunks(matrix: Matrix, upstream: tuple[Tensor, Tensor] | None, size: int) -> Pass:
    (rows, columns), x, y, dtype = matrix.shape, matrix.x, matrix.keys, matrix.product_dtype
    left, right = x.to(dtype), y.to(dtype)
    at_target, logits = _target_terms(matrix, upstream)
    sums = torch.zeros(4, dtype=torch.float64, device=x.device)
    of_x = of_y = chunk = None
    if upstream is not None:
        of_x = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        if matrix.y is not None:
            of_y = torch.zeros(y.shape, dtype=torch.float32, device=x.device)
        chunk = torch.empty((size, columns), dtype=dtype, device=x.device)
    for first in range(0, rows, size):
        count = min(size, rows - first)
        g = None if chunk is None else chunk[:count]
        sums += _run_chunk(matrix, upstream, at_target, first, count, g)
        if g is not None and of_x is not None:
            of_x[first : first + count] = product(g, right)
        if g is not None and of_y is not None:
            add_product(of_y, g.T, left[first : first + count])
    total, positive = sums[0] + sums[1], sums[1].clone()
    if logits is not None:
        total = total - F.logsigmoid(-logits).sum()
        positive = positive + torch.where(logits == -torch.inf, 0.0, logits).sum()
    return Pass(total, positive, of_x, of_y, sums[2], sums[3])


def _run_chunk(
    matrix: Matrix, upstream: tuple[Tensor, Tensor] | None, at_target: Tensor, first: int,
    count: int, g: Tensor | None,
) -> Tensor:  # fmt: skip
    """The four sums of `count` rows from `first` on; fills g, if there is one."""
    tile, x, columns, ids = matrix.tile("sigmoid"), matrix.x, matrix.shape[1], matrix.ids()
    weights = x
    if upstream is not None:
        weights = torch.stack([upstream[0], upstream[0] + upstream[1]]).float()
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


def _target_terms(
    matrix: Matrix, upstream: tuple[Tensor, Tensor] | None
) -> tuple[Tensor, Tensor | None]:
    """G at each row's target, and its logit, −inf where there is none; from float64."""
    if matrix.target is None:
        return matrix.x, None
    logits = torch.where(matrix.target == -1, -torch.inf, matrix.target_logits())
    if upstream is None:
        return matrix.x, logits
    of_total, of_positive = upstream
    return (of_total + of_positive - of_total * torch.sigmoid(-logits)).float(), logits
