"""Sums for sigmoid objectives, and their gradients in the same pass: the launches."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from mmcore.backends.calls import as_inputs
from mmcore.backends.triton.launch import chunk_rows
from mmcore.backends.triton.matrix import LOG2_E, Matrix, split, target_products
from mmcore.backends.triton.products import add_product, product
from mmcore.backends.triton.sigmoid_tile import sigmoid_tile_kernel


class Pass(NamedTuple):
    """What one pass over the matrix finds; gradients only where they are wanted, not scaled yet."""

    total: Tensor  # 0-D float64
    positive: Tensor
    of_x: Tensor | None  # G·y
    of_y: Tensor | None  # Gᵀ·x
    of_bias: Tensor  # Σ G
    of_scale: Tensor  # Σ G·⟨x, y⟩


def sigmoid_similarity(*arguments: Any) -> tuple[Tensor, ...]:
    *described, keeps_gradients = arguments
    matrix = _matrix(*described)
    one = torch.ones((), dtype=torch.float64, device=matrix.x.device)
    found = _run(matrix, (one, -one) if keeps_gradients else None)
    if found.of_x is None or found.of_y is None:
        empty = matrix.x.new_empty(0, dtype=torch.float32)
        return found.total, found.positive, empty, one.new_empty(0)
    scale = matrix.scale.float()
    if described[1] is None:
        kept = ((found.of_x + found.of_y) * scale).flatten()
    else:
        kept = torch.cat([(found.of_x * scale).flatten(), (found.of_y * scale).flatten()])
    return found.total, found.positive, kept, torch.stack([found.of_scale, found.of_bias])


def sigmoid_similarity_backward(*arguments: Any) -> tuple[Tensor, ...]:
    *described, kept, kept_sums, grad_total, grad_positive, wanted = arguments
    matrix, likes = _matrix(*described), described[:4]
    is_symmetric = described[1] is None
    if kept.numel() > 0 and matrix.target is not None:
        gradients = _from_kept(matrix, is_symmetric, kept, kept_sums, grad_total, grad_positive)
    else:
        found = _run(matrix, (grad_total.double(), grad_positive.double()))
        assert found.of_x is not None
        assert found.of_y is not None
        scale = matrix.scale.float()
        grad_x = found.of_x + found.of_y if is_symmetric else found.of_x
        gradients = (grad_x * scale, found.of_y * scale, found.of_scale, found.of_bias)
    return as_inputs(gradients, likes, wanted)


def _matrix(x: Tensor, y: Tensor | None, scale: Tensor, bias: Tensor | None, *rest: Any) -> Matrix:
    *pairs, multiplies_bfloat16 = rest
    return Matrix.of(x, y, scale, bias, None, None, *pairs, "all", True, multiplies_bfloat16)


def _from_kept(
    matrix: Matrix, is_symmetric: bool, kept: Tensor, kept_sums: Tensor, of_total: Tensor,
    of_positive: Tensor,
) -> tuple[Tensor, ...]:  # fmt: skip
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
    if is_symmetric:
        grad_x, grad_y = kept.view(matrix.x.shape) * of_total + of_x + of_y, of_y
    else:
        parts = kept.split([matrix.x.numel(), matrix.keys.numel()])
        grad_x = parts[0].view(matrix.x.shape) * of_total + of_x
        grad_y = parts[1].view(matrix.keys.shape) * of_total + of_y
    of_scale = kept_sums[0] * of_total + (weight * target_products(matrix, known)).sum()
    return grad_x, grad_y, of_scale, kept_sums[1] * of_total + weight.sum()


def _run(matrix: Matrix, upstream: tuple[Tensor, Tensor] | None) -> Pass:
    rows, columns = matrix.shape
    x, y, tile, dtype = matrix.x, matrix.keys, matrix.tile("narrow"), matrix.product_dtype
    left, right = x.to(dtype), y.to(dtype)
    at_target, logits = _target_terms(matrix, upstream)
    numbers, ids = _numbers(matrix), matrix.ids()
    sums = torch.zeros(4, dtype=torch.float64, device=x.device)
    of_x = of_y = None
    size = rows
    chunk = x
    weights = x
    if upstream is not None:
        size = chunk_rows(rows, columns, dtype.itemsize, tile.BM)
        chunk = torch.empty((size, columns), dtype=dtype, device=x.device)
        of_x = torch.empty(x.shape, dtype=torch.float32, device=x.device)
        of_y = torch.zeros(y.shape, dtype=torch.float32, device=x.device)
        weights = torch.stack([upstream[0], upstream[0] + upstream[1]]).float()
    for first in range(0, rows, size):
        count = min(size, rows - first)
        programs = triton.cdiv(count, tile.BM) * triton.cdiv(columns, tile.BN)
        parts = torch.zeros((4, programs), dtype=torch.float64, device=x.device)
        g = chunk[:count]
        sigmoid_tile_kernel[(programs,)](
            x, y, numbers, weights, ids[0], at_target, *ids[1:], g,
            *parts, first, count, columns, x.stride(0), y.stride(0), g.stride(0),
            HAS_GRADIENTS=upstream is not None, **matrix.flags(), **tile._asdict(),
        )  # fmt: skip
        sums += parts.sum(1)
        if of_x is not None and of_y is not None:
            of_x[first : first + count] = product(g, right)
            add_product(of_y, g.T, left[first : first + count])
    total, positive = sums[0] + sums[1], sums[1].clone()
    if logits is not None:
        total = total - F.logsigmoid(-logits).sum()
        positive = positive + torch.where(logits == -torch.inf, 0.0, logits).sum()
    return Pass(total, positive, of_x, of_y, sums[2], sums[3])


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
