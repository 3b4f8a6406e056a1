"""Launches the Triton kernels: tensors in, tensors out. The first call imports Triton itself."""

from __future__ import annotations

import os
from importlib.util import find_spec

import torch
from torch import Tensor

from mmcore.tracing import constant_when_compiled

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# Established at import: torch.compile traces `obstacle`, but not the search for a package.
IS_INSTALLED = find_spec("triton") is not None
# Asynchronous copies and bfloat16 products: Ampere and later. AMD's capabilities begin at 9.
LEAST_CAPABILITY = (8, 0)
_capabilities: dict[torch.device, tuple[int, int]] = {}


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
    if device not in _capabilities:  # torch asks the driver's library anew
        _capabilities[device] = torch.cuda.get_device_capability(device)
    return _capabilities[device]
