"""The objective of logistic regression over all rows, in weights that suit L-BFGS.

The logits are never stored: they are summed by `functional.softmax_similarity`, as in
`functional.linear_cross_entropy_loss`, but kept in float64, because a line search compares losses
that differ in their last digits. The weights are preconditioned by the curvature where they are 0,
so that neither the units nor the correlations of the columns matter to the number of iterations.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from mmcore.analysis.features import pieces
from mmcore.functional.similarity import softmax_similarity


class Objective:
    """The loss and its gradient, as functions of preconditioned weights: (C, D + 1) float64.

    weight·R = inner[:, :D], for R·Rᵀ the curvature at weights of 0, of the centred features.
    """

    def __init__(self, rows: Tensor, target: Tensor, classes: int, l2: float) -> None:
        self.rows, self.target, self.classes = rows, target, classes
        self.penalty = l2 / rows.shape[0] * (2 if classes == 2 else 1)
        self.mean, covariance = _moments(rows)
        curvature = covariance / classes
        # A penalty that is smaller than rounding would leave no factor.
        curvature.diagonal().add_(self.penalty + 1e-13 * curvature.trace())
        self.root = torch.linalg.cholesky(curvature)
        self.dtype = next(pieces(rows)).dtype  # in which the products are computed

    def start(self) -> Tensor:
        """Weights of 0."""
        return self.mean.new_zeros(self.classes, len(self.mean) + 1)

    def layer(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """The weight and the bias of the features as they are given."""
        weight = torch.linalg.solve_triangular(self.root, inner[:, :-1], upper=False, left=False)
        return weight, inner[:, -1] * math.sqrt(self.classes) - weight @ self.mean

    def __call__(self, inner: Tensor) -> tuple[Tensor, Tensor]:
        """Adds up both over the pieces of the rows."""
        weight, bias = (each.requires_grad_() for each in self.layer(inner))
        total, start = self.mean.new_zeros(()), 0
        for piece in pieces(self.rows):
            target = self.target[start : start + len(piece)]
            statistics = softmax_similarity(
                piece, weight.to(piece.dtype), col_bias=bias.to(piece.dtype), target=target,
                columns=False,
            )  # fmt: skip
            loss = (statistics.row_lse - statistics.row_pos).sum() / len(self.target)
            loss.backward()
            total += loss.detach()
            start += len(piece)
        assert weight.grad is not None
        assert bias.grad is not None
        of_weight = weight.grad + self.penalty * weight.detach()
        of_weight -= bias.grad[:, None] * self.mean
        parts = [
            torch.linalg.solve_triangular(self.root, of_weight.T, upper=False).T,
            bias.grad[:, None] * math.sqrt(self.classes),
        ]
        return total + self.penalty / 2 * weight.detach().square().sum(), torch.cat(parts, 1)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of the rows in float64; refuses NaN and inf."""
    width, start = rows.shape[1], 0
    total = next(pieces(rows)).new_zeros(width, dtype=torch.float64)
    for piece in pieces(rows, width):
        is_finite = piece.isfinite().all(1)
        if not bool(is_finite.all()):
            row = start + int((~is_finite).nonzero()[0])
            raise ValueError(f"features must be finite, got NaN or inf in row {row}")
        total += piece.sum(0, dtype=torch.float64)
        start += len(piece)
    mean = total / start
    product = total.new_zeros(width, width)
    for piece in pieces(rows, width):
        centred = piece.double() - mean
        product += centred.T @ centred
    return mean, product / start
