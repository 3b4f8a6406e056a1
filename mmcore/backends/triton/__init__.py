"""Launches the Triton kernels: tensors in, tensors out. The first call imports Triton itself."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from mmcore.backends.prefixes import PrefixLoop
from mmcore.backends.triton.softmax_similarity.kept_exponentials import kept_tiles
from mmcore.tracing import constant_when_compiled

__all__ = [
    "hardest_negatives",
    "kept_tiles",
    "l2_normalize",
    "l2_normalize_backward",
    "obstacle",
    "prefix_similarity",
    "prefix_similarity_backward",
    "project",
    "project_backward",
    "sigmoid_similarity",
    "sigmoid_similarity_backward",
    "softmax_similarity",
    "softmax_similarity_backward",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Established at import: torch.compile traces `obstacle`, but not the search for a package.
IS_INSTALLED = find_spec("triton") is not None
# Asynchronous copies and bfloat16 products: Ampere and later. AMD's capabilities begin at 9.
LEAST_CAPABILITY = (8, 0)


def obstacle(x: Tensor) -> str | None:
    """Why the Triton kernels cannot serve `x`; None where they can."""
    if x.dtype not in DTYPES:
        name = str(x.dtype).removeprefix("torch.")
        return f"the Triton kernels take float32, bfloat16 and float16, got {name}"
    if not IS_INSTALLED:
        return "the package triton is not installed"
    if x.device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "the tensors are on cpu, where Triton runs only with TRITON_INTERPRET=1"
    if x.device.type != "cuda":
        return f"the tensors are on {x.device.type}, which Triton does not serve"
    capability = _capability(x.device)
    if capability < LEAST_CAPABILITY:
        return f"the GPU has compute capability {capability[0]}.{capability[1]}, 8.0 is needed"
    return None


@constant_when_compiled
def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


def _of(module: str, name: str) -> Callable[..., Any]:
    """The launcher of that name, whose module is imported by its first call."""

    def launch(*arguments: Any) -> Any:
        launcher = getattr(import_module(f"{__name__}.{module}"), name)
        # Triton launches on torch's current device, which need not be that of the tensors.
        with torch.cuda.device_of(arguments[0]):
            return launcher(*arguments)

    return launch


l2_normalize = _of("l2_normalize", "l2_normalize")
l2_normalize_backward = _of("l2_normalize", "l2_normalize_backward")
project = _of("project.projection", "project")
project_backward = _of("project.projection", "project_backward")
softmax_similarity = _of("softmax_similarity.forward", "softmax_similarity")
softmax_similarity_backward = _of("softmax_similarity.backward", "softmax_similarity_backward")
sigmoid_similarity = _of("sigmoid_similarity.one_pass", "sigmoid_similarity")
sigmoid_similarity_backward = _of("sigmoid_similarity.one_pass", "sigmoid_similarity_backward")
hardest_negatives = _of("hardest_negatives", "hardest_negatives")
_prefixes = PrefixLoop(
    l2_normalize, l2_normalize_backward, softmax_similarity, softmax_similarity_backward
)
prefix_similarity = _prefixes.forward
prefix_similarity_backward = _prefixes.backward
