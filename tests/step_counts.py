"""What a training step asks of a GPU, counted on the fake one: launches, torch's kernels, memory.

Each of them costs the host microseconds; below a few thousand rows they are the time of the step.
It counts what the caller of `loss.backward()` causes: the objective, its ops, and autograd between
them. benchmarks/launch_counts.py runs this file on the sources of another commit as well.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any, NamedTuple

import pytest
import torch
from fake_gpu import Launches, fake_gpu
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import mmcore
from mmcore import backends
from mmcore import functional as F

ROWS, WIDTH, QUEUED = 4096, 512, 16384
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided"}
# A view that torch's schema does not call one.
VIEWS = {"_unsafe_view"}


class Counts(NamedTuple):
    """Of one pass."""

    launches: int = 0  # of Triton kernels
    kernels: int = 0  # of torch: its ops that are no views and no allocations
    allocations: int = 0  # torch's ops that only allocate


class Step(NamedTuple):
    """A whole step."""

    forward: Counts
    backward: Counts


class TorchOps(TorchDispatchMode):
    """Counts torch's ops, those inside of mmcore's as well."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels, self.allocations = 0, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        options = options or {}
        if function.namespace == "mmcore":
            # What the op does, and not its fake, which torch would take for meta tensors.
            with self:
                does = torch._C.DispatchKey.CompositeExplicitAutograd
                return function._op_dk(does, *arguments, **options)
        name = function.overloadpacket.__name__
        if name in ALLOCATIONS:
            self.allocations += 1
        elif not function.is_view and name not in VIEWS:
            self.kernels += 1
        return function(*arguments, **options)


@contextmanager
def counted_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """A fake GPU whose tensors the Triton backend serves, where autocast is off."""
    choose = backends.choose
    with monkeypatch.context() as patch:
        # In 9efbf71 other modules than mmcore.backends have it by name.
        for module in [each for name, each in sys.modules.items() if name.startswith("mmcore")]:
            if getattr(module, "choose", None) is choose:
                patch.setattr(module, "choose", lambda requested, x: "triton")
        patch.setattr(torch, "is_autocast_enabled", lambda *device: False)
        patch.setattr(torch, "autocast", lambda *device, **options: nullcontext())
        with fake_gpu(patch) as launches:
            yield launches


def count(launches: Launches, call: Callable[[], Any]) -> Step:
    """Counts a step's second run: the first may compute what every later one uses again."""
    for _ in range(2):
        passes = []
        launches.clear()
        with TorchOps() as ops:
            results = call()
        passes.append(Counts(len(launches), ops.kernels, ops.allocations))
        found = [each for each in tree_leaves(results) if each.requires_grad]
        upstream = [None if each.ndim == 0 else torch.empty_like(each) for each in found]
        launches.clear()
        with TorchOps() as ops:
            if found:
                torch.autograd.backward(found, upstream)
        passes.append(Counts(len(launches), ops.kernels, ops.allocations))
    return Step(*passes)


# What the steps are called with; made inside of `counted_gpu`.


def features(rows: int = ROWS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rows with a gradient."""
    return torch.empty(rows, WIDTH, dtype=dtype).requires_grad_()


def sides(dtype: torch.dtype = torch.bfloat16) -> tuple[Tensor, Tensor, Tensor]:
    """Both sides, and the scale."""
    return features(dtype=dtype), features(dtype=dtype), number()


def number() -> Tensor:
    """With a gradient."""
    return torch.empty(()).requires_grad_()


def ids() -> Tensor:
    """Of every row."""
    return torch.empty(ROWS, dtype=torch.int64)


def weights(*size: int) -> Tensor:
    """In bfloat16, with a gradient."""
    return torch.empty(size, dtype=torch.bfloat16).requires_grad_()


def general_softmax() -> Any:
    """Labels, groups, and a bias for each row and column."""
    labels = {"row_label": ids(), "col_label": ids(), "row_group": ids(), "col_group": ids()}
    biases = {name: torch.empty(ROWS).requires_grad_() for name in ("row_bias", "col_bias")}
    return F.softmax_similarity(*sides(), **labels, **biases)


def project_layer_norm() -> Any:
    """The whole projection head."""
    norm = {"norm_weight": weights(WIDTH), "norm_bias": weights(WIDTH)}
    return F.project(features(), weights(WIDTH, WIDTH), weights(WIDTH), norm="layer", **norm)


STEPS: dict[str, Callable[[], Any]] = {
    "clip": lambda: F.clip_loss(*sides()),
    "clip, no gradient": torch.no_grad()(lambda: F.clip_loss(*sides())),
    "clip, float16": lambda: F.clip_loss(*sides(torch.float16)),
    "clip, float32": lambda: F.clip_loss(*sides(torch.float32)),
    "clip, label smoothing": lambda: F.clip_loss(*sides(), label_smoothing=0.1),
    "siglip": lambda: F.siglip_loss(*sides(), number()),
    "siglip, no gradient": torch.no_grad()(lambda: F.siglip_loss(*sides(), number())),
    "siglip, float32": lambda: F.siglip_loss(*sides(torch.float32), number()),
    "softmax_similarity": lambda: F.softmax_similarity(*sides()),
    "softmax_similarity, labels": general_softmax,
    "sigmoid_similarity": lambda: F.sigmoid_similarity(*sides(), number()),
    "sigmoid_similarity, labels": lambda: F.sigmoid_similarity(
        *sides(), number(), row_label=ids(), col_label=ids()
    ),
    "info_nce": lambda: F.info_nce_loss(*sides()),
    "info_nce, queue": lambda: F.info_nce_loss(*sides(), queue=features(QUEUED).detach()),
    "nt_xent": lambda: F.nt_xent_loss(*sides()),
    "sup_con": lambda: F.sup_con_loss(features(), ids(), number()),
    "project": lambda: F.project(features(), weights(WIDTH, WIDTH)),
    "project, layer norm": project_layer_norm,
    "l2_normalize": lambda: F.l2_normalize(features()),
    "hardest_negatives": lambda: F.hardest_negatives(features(), features()),
    "matryoshka": lambda: F.matryoshka_loss(*sides(), [128, WIDTH]),
    "distill_clip": lambda: F.distill_clip_loss(
        *sides(), features().detach(), features().detach(), 10.0
    ),
    "symile": lambda: F.symile_loss({name: features() for name in "abc"}, number()),
    "gram_loss": lambda: F.gram_loss({name: features() for name in "abc"}, number(), anchor="a"),
    "gram": lambda: F.gram(features(), features()),
    "clip, workspace 0": lambda: F.clip_loss(*sides()),
}


WORKSPACES = {"clip, workspace 0": 0}


def counts_of(name: str, monkeypatch: pytest.MonkeyPatch) -> Step:
    """What a step takes, with 1 GiB of workspace where nothing else is said."""
    with mmcore.workspace(WORKSPACES.get(name, 2**30)), counted_gpu(monkeypatch) as launches:
        return count(launches, STEPS[name])


def counts_of_all() -> dict[str, Step]:
    """Of every step."""
    return {name: counts_of(name, pytest.MonkeyPatch()) for name in STEPS}


if __name__ == "__main__":
    print(json.dumps(counts_of_all()))
