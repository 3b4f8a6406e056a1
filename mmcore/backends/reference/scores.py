"""The scores of retrieval, to the bit (backends/retrieval.py), and bounds of what selects them.

A product and a sum are two operations of torch, so that no FMA joins them. Matrix products serve
the selection alone: their order of summation is the library's, and the bound holds for any order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LANES = 8
UNIT = 2.0**-53
# Rows whose norm is in this range, or 0, can neither overflow nor underflow in a way that counts.
LEAST_NORM, LARGEST_NORM = 2.0**-400, 2.0**400
BYTES_OF_A_PIECE = 32 * 2**20  # of the float64 rows that are scored, or measured, at a time


class RowTerms(NamedTuple):
    """What the score and its bound need of each row."""

    inverse_norm: Tensor  # float64, as the contract computes it
    square: Tensor  # float64, sum8(v·v)
    norm: Tensor  # float64, for bounds: ∞ where no bound holds
    is_nan: Tensor  # bool: a number of the row is NaN, and every score with it


def sum8(terms: Tensor) -> Tensor:
    """The sum of the last axis, float64, in the order of the contract."""
    excess = -terms.shape[-1] % LANES
    if excess:  # a term of 0 changes no sum, because no sum is −0
        terms = torch.nn.functional.pad(terms, (0, excess))
    steps = terms.unflatten(-1, (-1, LANES))
    lanes = torch.zeros_like(steps[..., 0, :])
    for step in steps.unbind(-2):
        lanes += step
    for _ in range(3):
        lanes = lanes[..., ::2] + lanes[..., 1::2]
    return lanes[..., 0]


def row_terms(rows: Tensor) -> RowTerms:
    """Those of all rows, some at a time."""
    pieces = [_terms_of_piece(piece) for piece in rows.split(rows_of_a_piece(rows.shape[1]))]
    if not pieces:
        pieces = [_terms_of_piece(rows)]
    return RowTerms(*(torch.cat(values) for values in zip(*pieces, strict=True)))


def pair_scores(
    x: Tensor, y: Tensor, metric: str, x_terms: RowTerms, y_terms: RowTerms,
    row: Tensor, col: Tensor,
) -> Tensor:  # fmt: skip
    """(P,) the scores of row_p of `x` with col_p of `y`, without a bias; some pairs at a time."""
    size = rows_of_a_piece(x.shape[1])
    found = torch.empty(row.shape, dtype=torch.float64, device=x.device)
    for begin in range(0, row.shape[0], size):
        piece = slice(begin, begin + size)
        i, j = row[piece], col[piece]
        found[piece] = _scores(x[i].double(), y[j].double(), metric)
        if metric == "cosine":
            found[piece] *= x_terms.inverse_norm[i] * y_terms.inverse_norm[j]
    return found


def approximate(
    x: Tensor, y: Tensor, metric: str, x_terms: RowTerms, y_terms: RowTerms
) -> tuple[Tensor, Tensor]:
    """(N, M) twice: scores from a matrix product, and how far they may be from the contract's.

    Every order of summing D products, with FMA or without, is within γ(D)·Σ_k |x_k·y_k| of the
    sum without rounding, γ(D) ≈ D·2⁻⁵³, and Σ_k |x_k·y_k| ≤ ‖x‖·‖y‖. sum8 is one such order. The
    radius has four times that, which leaves room for what is done with the sum. ∞ and NaN mean
    that there is no bound. `x` and `y` are float64.
    """
    unit = (4 * x.shape[1] + 64) * UNIT
    value = x @ y.T
    x_norm, y_norm = x_terms.norm[:, None], y_terms.norm
    if metric == "cosine":
        value *= x_terms.inverse_norm[:, None] * y_terms.inverse_norm
        x_norm = x_norm * x_terms.inverse_norm[:, None]
        y_norm = y_norm * y_terms.inverse_norm
    elif metric == "l2":
        value = 2 * value - (x_terms.square[:, None] + y_terms.square)
        return value, unit * (x_norm + y_norm).square()
    return value, unit * x_norm * y_norm


def rows_of_a_piece(width: int) -> int:
    """How many rows are widened to float64 at a time, of two sides and their products."""
    return max(1, BYTES_OF_A_PIECE // (3 * 8 * width))


def _scores(x: Tensor, y: Tensor, metric: str) -> Tensor:
    """Row by row, of float64 rows that may be overwritten."""
    if metric == "l2":
        difference = x.sub_(y)
        return -sum8(difference.mul_(difference))
    return sum8(x.mul_(y))


def _terms_of_piece(rows: Tensor) -> RowTerms:
    wide = rows.double()
    square = sum8(wide * wide)
    inverse = torch.where(square == 0, 0.0, 1 / _square_root(square))
    norm = torch.linalg.vector_norm(wide, dim=1)
    is_zero = (wide == 0).all(1)
    is_ordinary = is_zero | ((norm >= LEAST_NORM) & (norm <= LARGEST_NORM))
    return RowTerms(inverse, square, norm.masked_fill(~is_ordinary, torch.inf), wide.isnan().any(1))


def _square_root(values: Tensor) -> Tensor:
    """Correctly rounded, as IEEE 754 has it. torch's on a CPU is not where the values are many."""
    if values.device.type == "cpu":
        return torch.from_numpy(np.sqrt(values.numpy()))
    return values.sqrt()
