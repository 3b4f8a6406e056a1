"""torch.compile on a CPU."""

import os
import shutil

import torch

from measure import Function
from providers.provider import Built


def require_compiler() -> None:
    """A C++ compiler, without which torch.compile cannot serve a CPU."""
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise RuntimeError(f"torch.compile needs a C++ compiler, {compiler} is not found")


def compiled(function: Function, options: str = "", *, fullgraph: bool = True) -> Built:
    """torch.compile of a function, specialised to the shape of its first call.

    mode="max-autotune" was tried on a CPU with CLIP at N = 512 to 4096 and gained nothing.
    """
    return Built(
        torch.compile(function, dynamic=False, fullgraph=fullgraph), options, is_compiled=True
    )
