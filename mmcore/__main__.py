"""``python -m mmcore``: what is available here, and why the rest is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
from collections.abc import Iterator

import torch

import mmcore
from mmcore.backends import NAMES, cpu, triton


def lines() -> Iterator[tuple[str, str]]:
    """(what, state) pairs, in the order in which they are printed."""
    yield "mmcore", mmcore.__version__
    yield "python", platform.python_version()
    for package in ("torch", "numpy", "triton"):
        yield package, _version(package)
    yield "threads", f"{torch.get_num_threads()} (torch.set_num_threads)"
    yield "backends", ", ".join(NAMES)
    yield "backend cpu", _cpu_state()
    yield "gpu", _gpu_state()
    for variable in ("MMCORE_BACKEND", "MMCORE_STRICT", "MMCORE_CPU_ISA", "MMCORE_WORKSPACE"):
        yield variable, os.environ.get(variable, "not set")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_state() -> str:
    if cpu.missing_module is not None:
        return f"unavailable: mmcore._C could not be imported ({cpu.missing_module})"
    in_use, *others = cpu.instruction_sets()
    return f"available, {in_use} in use, {', '.join(others) or 'nothing else'} at hand"


def _gpu_state() -> str:
    if not torch.cuda.is_available():
        return f"none that torch {torch.__version__} can use; GPU tensors need one"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    obstacle = triton.obstacle(torch.empty(0, device="cuda"))
    return f"{names}: " + ("served by triton" if obstacle is None else f"not served: {obstacle}")


def main() -> None:
    """Prints the report."""
    for what, state in lines():
        print(f"{what}: {state}")


if __name__ == "__main__":
    main()
