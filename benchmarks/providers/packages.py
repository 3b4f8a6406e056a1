"""Losses of installed packages: open_clip, lightly, pytorch-metric-learning.

All are installed without their dependencies. Where a package's own imports would want these (image
libraries, trainers), its loss module is imported alone.
"""

import functools
import importlib
import importlib.util
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

from cases import Case
from inputs import Mode
from measure import Function
from providers.compiling import compiled
from providers.provider import Built, fastest
from similarity_cases import NTXentCase, SupConCase


def import_alone(module: str, unexecuted: tuple[str, ...]) -> ModuleType:
    """Import a module of a package; the `unexecuted` ones are entered without running their code.

    Names inside an unexecuted package are still found: it has its path, only no contents.
    """
    for name in unexecuted:
        if name in sys.modules:
            continue
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"{name} is missing: see benchmarks/README.md")
        sys.modules[name] = importlib.util.module_from_spec(spec)
    return importlib.import_module(module)


# ---- open_clip


@functools.cache
def open_clip_losses() -> ModuleType:
    """open_clip's loss.py without the package around it, which wants torchvision."""
    return import_alone("open_clip.loss", unexecuted=("open_clip",))


@functools.cache
def open_clip_clip() -> Function:
    """ClipLoss, alone on its device."""
    loss = open_clip_losses().ClipLoss()

    def clip_loss(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(x, y, scale)
        return value

    return clip_loss


@functools.cache
def open_clip_siglip() -> Function:
    """SigLipLoss, alone on its device."""
    loss = open_clip_losses().SigLipLoss()

    def siglip_loss(
        x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        value: torch.Tensor = loss(x, y, scale, bias)
        return value

    return siglip_loss


# ---- lightly


@functools.cache
def lightly_losses() -> ModuleType:
    """lightly's NT-Xent module; what wants torchvision serves a memory bank, which is off."""
    packages = ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules")
    return import_alone("lightly.loss.ntx_ent_loss", unexecuted=(*packages, "lightly.models.utils"))


def lightly_nt_xent(case: NTXentCase) -> Function:
    """NTXentLoss given the two halves.

    It normalises rows once more, which there is no way to switch off: the value is the same, and
    the gradients lose their part along each row.
    """
    loss = lightly_losses().NTXentLoss(temperature=1 / case.scale)

    def nt_xent(x: torch.Tensor) -> torch.Tensor:
        value: torch.Tensor = loss(*x.chunk(2))
        return value

    return nt_xent


# ---- pytorch-metric-learning


@functools.cache
def metric_learning_losses() -> ModuleType:
    """pytorch-metric-learning's losses; of its dependencies, they import scipy."""
    return importlib.import_module("pytorch_metric_learning.losses")


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
