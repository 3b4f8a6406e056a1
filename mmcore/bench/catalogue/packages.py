"""Losses of installed packages: open_clip, lightly, pytorch-metric-learning.

All are installed without their dependencies. Where a package's own imports would want these (image
libraries, trainers), its loss module is imported alone.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import sys
from types import ModuleType
from typing import Any

import torch


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


def temperature(scale: float | torch.Tensor) -> float:
    """As a number, which these libraries take it for."""
    return 1 / float(torch.as_tensor(scale).detach())


@functools.cache
def open_clip_losses() -> ModuleType:
    """open_clip's module of losses without the package around it, which wants torchvision."""
    return import_alone("open_clip.loss", unexecuted=("open_clip",))


@functools.cache
def lightly_losses(module: str) -> ModuleType:
    """A module of lightly.loss; what wants torchvision serves a memory bank, which is off."""
    packages = ("lightly", "lightly.loss", "lightly.models", "lightly.models.modules")
    return import_alone(f"lightly.loss.{module}", (*packages, "lightly.models.utils"))


@functools.cache
def metric_learning_losses() -> ModuleType:
    """pytorch-metric-learning's losses; of its dependencies, they import scipy."""
    return importlib.import_module("pytorch_metric_learning.losses")


def sentence_transformers_loss(name: str, *arguments: Any, **options: Any) -> Any:
    """A loss of sentence-transformers over a model that does nothing."""
    losses = importlib.import_module("sentence_transformers.sentence_transformer.losses")
    return getattr(losses, name)(torch.nn.Identity(), *arguments, **options)
