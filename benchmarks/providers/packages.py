"""Losses of lightly and pytorch-metric-learning as functions of a case's features."""

import importlib
from collections.abc import Callable
from typing import Any

import torch

from cases import Case
from inputs import Mode
from measure import Function
from mmcore.bench.catalogue.packages import lightly_losses, metric_learning_losses
from providers.compiling import compiled
from providers.provider import Built, fastest
from similarity_cases import NTXentCase, SupConCase

# ---- lightly


def lightly_nt_xent(case: NTXentCase) -> Function:
    """NTXentLoss given the two halves.

    It normalises rows once more, which there is no way to switch off: the value is the same, and
    the gradients lose their part along each row.
    """
    loss = lightly_losses("ntx_ent_loss").NTXentLoss(temperature=1 / case.scale)

    def nt_xent(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(*x.chunk(2))
        return value

    return nt_xent


# ---- pytorch-metric-learning


def dot_products() -> object:
    """The distance for rows that are normalised already; its default would normalise once more."""
    distances = importlib.import_module("pytorch_metric_learning.distances")
    return distances.DotProductSimilarity(normalize_embeddings=False)


def metric_learning_nt_xent(case: NTXentCase) -> Function:
    """NTXentLoss given a label for every pair of views."""
    losses = metric_learning_losses()
    loss = losses.NTXentLoss(temperature=1 / case.scale, distance=dot_products())

    def nt_xent(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(x, torch.arange(x.shape[0] // 2).repeat(2))
        return value

    return nt_xent


def metric_learning_sup_con(case: SupConCase) -> Function:
    """SupConLoss given a label for every class.

    Its usual form, the mean over the rows whose loss is not zero, is that of the other providers:
    `--accuracy` holds both to the same float64 value and gradient, and they meet it alike.
    """
    losses = metric_learning_losses()
    loss = losses.SupConLoss(temperature=1 / case.scale, distance=dot_products())

    def sup_con(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(x, torch.arange(x.shape[0]) // case.rows_per_class)
        return value

    return sup_con


# ---- eager or compiled

# Indexing with masks breaks their graphs, yet torch.compile fuses what is between the breaks.
LossOfCase = Callable[[Any], Function]


def build_faster(loss_of: LossOfCase, case: Case, mode: Mode) -> Built:
    """The package's loss as it is or under torch.compile, whichever is faster."""
    eager = Built(loss_of(case), "eager")
    candidates = {"eager": eager, "torch.compile": build_compiled_loss(loss_of, case, mode)}
    return fastest(candidates, case, mode)


def build_compiled_loss(loss_of: LossOfCase, case: Case, mode: Mode) -> Built:
    """The package's loss under torch.compile, which is the leaner way."""
    return compiled(loss_of(case), "torch.compile", fullgraph=False)
