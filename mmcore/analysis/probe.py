"""A linear classifier on features that do not change: multinomial logistic regression by L-BFGS.

torch.optim.LBFGS minimises `Objective` of mmcore/analysis/logistic.py, with a line search by the
strong Wolfe conditions.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmcore.analysis.features import as_labels, as_matrix, pieces
from mmcore.analysis.logistic import Objective
from mmcore.functional import arguments as check
from mmcore.retrieval import arrays

HISTORY = 20  # steps that L-BFGS remembers
# What the largest element of the gradient of `Objective` is to reach, and what it must have reached
# to have converged: from there on the steps may be lost in the rounding of the loss.
WANTED = {torch.float64: 4e-9, torch.float32: 1e-6}
ACCEPTED = {torch.float64: 2e-8, torch.float32: 1e-4}


@dataclass(frozen=True, eq=False, repr=False)
class LinearProbe:
    """What `linear_probe` has found: logits are ``features @ weight.T + bias``.

    Attributes:
        weight: (C, D) float64.
        bias: (C,) float64, of mean 0.
        classes: (C,) int64, ascending: the labels that occur.
        loss: what was minimised, at its end: see `linear_probe`.
        iterations: of L-BFGS.
        has_converged: whether the gradient became as small as the dtype of the features allows.

    Example:
        >>> import torch, mmcore
        >>> features, labels = torch.randn(200, 8), torch.randint(0, 3, (200,))
        >>> features[range(200), labels] += 5
        >>> probe = mmcore.analysis.linear_probe(features, labels)
        >>> probe
        LinearProbe(8 → 3 classes, converged)
        >>> probe.accuracy(features, labels) > 0.9
        True
    """

    weight: Tensor
    bias: Tensor
    classes: Tensor
    loss: float
    iterations: int
    has_converged: bool

    def predict(self, features: Any) -> Any:
        """The class of each row: (N,) int64, of equal logits the lower class, −1 for NaN.

        An array of the library of the features; so are `probabilities`.
        """
        rows = self._checked(features)
        found = [
            torch.where(logits.isnan().any(1), -1, self.classes.to(logits.device)[logits.argmax(1)])
            for logits in self._logits(rows)
        ]
        return arrays.like(features, torch.cat(found))

    def probabilities(self, features: Any) -> Any:
        """The softmax of the logits: (N, C), float32, or float64 for float64; columns as `classes`.

        Memory: the result.
        """
        rows = self._checked(features)
        found = [logits.softmax(1) for logits in self._logits(rows)]
        return arrays.like(features, torch.cat(found))

    def accuracy(self, features: Any, labels: Any) -> float:
        """The share of rows whose class is predicted; a class unknown to the probe never is."""
        rows = self._checked(features)
        wanted = as_labels("labels", labels, rows, "features")
        if not len(wanted):
            raise ValueError(f"features must have at least 1 row, got shape {tuple(rows.shape)}")
        return float((self.predict(rows) == wanted).double().mean())

    def __repr__(self) -> str:
        outcome = "converged" if self.has_converged else "not converged"
        return f"LinearProbe({self.weight.shape[1]} → {len(self.classes)} classes, {outcome})"

    def _checked(self, features: object) -> Tensor:
        rows = as_matrix("features", features)
        if rows.shape[1] != self.weight.shape[1]:
            raise ValueError(
                f"features must have {self.weight.shape[1]} columns to match the probe, "
                f"got {rows.shape[1]}"
            )
        return rows

    def _logits(self, rows: Tensor) -> Iterator[Tensor]:
        """(n, C) for pieces of the rows."""
        for piece in pieces(rows, len(self.classes) + self.weight.shape[1]):
            weight, bias = (each.to(piece) for each in (self.weight, self.bias))
            with torch.no_grad(), torch.autocast(piece.device.type, enabled=False):
                logits = torch.addmm(bias, piece, weight.T)
            yield logits


def linear_probe(
    features: Any, labels: Any, *, l2: float = 1.0, max_iterations: int = 1000
) -> LinearProbe:
    """How much a linear classifier can read from features: multinomial logistic regression.

    Equivalent, with the logits never stored, to minimising ::

        logits = features @ weight.T + bias
        F.cross_entropy(logits, labels) + l2 / (2 * N) * weight.square().sum()

    which is scikit-learn's ``LogisticRegression(C=1 / l2)``, with which CLIP was probed. With two
    classes the penalty is doubled, and so is that of scikit-learn, which has one weight for both,
    their difference. Choose `l2` on rows that are held out.

    Args:
        features: (N, D), a tensor, a NumPy array (a mapped file too) or any with `__dlpack__`, any
            floating-point dtype, not normalised here. Those of 16 bits are computed in float32,
            some rows at a time.
        labels: (N,) integers, at least 0, of at least two classes; numbers that do not occur are
            no classes.
        l2: above 0: the weight of the penalty. The bias has none.
        max_iterations: of L-BFGS, at least 1.

    Returns:
        A `LinearProbe`: the same bits from the same inputs and thread count. Its probabilities are
        those of the minimum to about 1e-6 for float64, and 1e-3 otherwise. Where it has not
        converged, a RuntimeWarning says so.

    Raises:
        TypeError, ValueError: shapes or dtypes do not fit together, there are fewer than two
            classes, a number is NaN or inf, or an option is out of range.

    Memory:
        O(D² + C·D) in float64, forty times C·D for what L-BFGS remembers, and what
        `functional.softmax_similarity` takes; the N·C logits are not stored.

    Reference:
        Radford et al., Learning Transferable Visual Models From Natural Language Supervision, 2021,
        https://arxiv.org/abs/2103.00020, appendix A.3; Böhning, Multinomial Logistic Regression
        Algorithm, 1992, https://doi.org/10.1007/BF00048682, for the bound of the curvature by which
        the weights are preconditioned.

    Example:
        >>> import torch, mmcore
        >>> features, labels = torch.randn(100, 8), torch.randint(0, 2, (100,))
        >>> probe = mmcore.analysis.linear_probe(features, labels, l2=3.0)
        >>> probe.probabilities(features).shape
        torch.Size([100, 2])
    """
    rows = as_matrix("features", features)
    target = as_labels("labels", labels, rows, "features")
    l2 = check.check_positive("l2", l2)
    max_iterations = check.check_count("max_iterations", max_iterations, 2**31)
    classes, target = target.unique(return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"labels must be of at least 2 classes, got {classes.tolist()}")
    objective = Objective(rows, target, len(classes), l2)
    inner = objective.start().requires_grad_()
    optimiser = torch.optim.LBFGS(
        [inner], max_iter=max_iterations, max_eval=4 * max_iterations, history_size=HISTORY,
        tolerance_grad=WANTED[objective.dtype], tolerance_change=0, line_search_fn="strong_wolfe",
    )  # fmt: skip

    def closure() -> Tensor:
        loss, inner.grad = objective(inner.detach())
        return loss

    no_autocast = torch.autocast(inner.device.type, enabled=False)
    with torch.inference_mode(False), torch.enable_grad(), no_autocast:
        optimiser.step(closure)
        loss, gradient = objective(inner.detach())
    has_converged = bool(gradient.abs().max() <= ACCEPTED[objective.dtype])
    iterations = int(optimiser.state[inner]["n_iter"])
    if not has_converged:
        warnings.warn(
            f"linear_probe has not converged after {iterations} iterations: a larger l2 or more "
            f"max_iterations would help",
            RuntimeWarning,
            stacklevel=2,
        )
    weight, bias = objective.layer(inner.detach())
    return LinearProbe(weight, bias - bias.mean(), classes, float(loss), iterations, has_converged)
