"""What G needs of rows and of columns, formed in float64: O(N + M), and O(N·D) for targets."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.backends.triton.gradient import TERMS
from mmcore.backends.triton.matrix import LOG2_E, BiasFactors, Matrix, Plan, split

# A factor of up to 2⁸⁶ times an E that was flushed to 0, below 2⁻¹²⁶, would be less than 2⁻⁴⁰.
LARGEST_TRUSTED_EXPONENT = 86


def unit_of(matrix: Matrix, *upstream: Tensor) -> Tensor:
    """A power of two: G over it keeps its digits in the dtype that is multiplied.

    Over the one below the largest upstream gradient no entry of G, nor of G + Gᵀ, reaches 16. In
    float16 numbers begin at 2⁻¹⁴, and a softmax over many columns is smaller: 2¹¹ times as much
    still fits.
    """
    largest = torch.stack(
        [part.abs().max() if part.numel() else part.new_zeros(()) for part in upstream]
    ).max()
    unit = torch.exp2(largest.log2().floor())
    unit = torch.where((largest > 0) & unit.isfinite(), unit, 1.0)
    return unit * 2.0**-11 if matrix.product_dtype == torch.float16 else unit


def side_terms(
    plan: Plan, own_bias: Tensor, lse: Tensor, weight: Tensor, positive: Tensor, lent: BiasFactors,
    received: BiasFactors, is_shared: Tensor,
) -> Tensor:  # fmt: skip
    """Of one side: (TERMS, N) or (TERMS, M) float32, in the order of gradient.py.

    `lent` are the biases that this side adds to the other's sums, `received` the other way round.
    """
    is_counted = lse != -torch.inf
    weight = torch.where(is_counted, weight, 0.0)
    # Without a weight nothing is taken of a row, not even NaN.
    level = torch.where(is_counted & (weight != 0), (lse - own_bias) * LOG2_E, torch.inf)
    exponent = plan.shift + received.largest - level
    factor = torch.where(weight == 0, 0.0, weight * torch.exp2(exponent)).float()
    is_small = exponent <= LARGEST_TRUSTED_EXPONENT
    is_normal = factor.abs() >= torch.finfo(torch.float32).tiny
    is_trusted = ((weight == 0) | (is_small & is_normal)) & is_shared
    ones = torch.ones_like(factor)
    terms = torch.stack([
        factor, *split(level), weight.float(), positive.float(), is_trusted.float(),
        ones if lent.factor is None else lent.factor,
        ones if lent.bias is None else lent.bias.float(),
    ])  # fmt: skip
    assert len(terms) == TERMS
    return terms


def target_gradients(
    matrix: Matrix, row_lse: Tensor, col_lse: Tensor, row_grad: Tensor, col_grad: Tensor,
    row_pos_grad: Tensor, col_pos_grad: Tensor,
) -> Tensor:  # fmt: skip
    """G of each row's target."""
    assert matrix.target is not None
    known = matrix.target.clamp(0, matrix.shape[1] - 1)
    logits = matrix.target_logits()
    total = row_pos_grad + col_pos_grad[known]
    if matrix.denominator != "negatives":
        for lse, grad in ((row_lse, row_grad), (col_lse[known], col_grad[known])):
            softmax = (logits - lse).exp()
            total = total + torch.where((grad == 0) | (lse == -torch.inf), 0.0, grad * softmax)
    return torch.where(
        matrix.target == known, total, torch.where(matrix.target == -1, 0.0, torch.nan)
    ).float()
