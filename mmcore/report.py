"""What ``python -m mmcore`` reports: versions, backends, machine, and what serves each op family.

`facts` collects it, as values that JSON can hold; `text` words it for people.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

import torch

import mmcore
from mmcore.backends import COMPILED, NAMES, cpu, has_file, triton
from mmcore.ops import FAMILIES

VARIABLES = (
    "MMCORE_BACKEND",
    "MMCORE_STRICT",
    "MMCORE_CPU_ISA",
    "MMCORE_WORKSPACE",
    "MMCORE_TILES",
    "MMCORE_LAUNCH_PLAN",
)
HOW_TO_BUILD = (
    "install a C++20 compiler with OpenMP, such as g++, and run "
    "`pip install --force-reinstall --no-deps .` in mmcore's sources"
)


def facts() -> dict[str, Any]:
    """Everything that is reported; None stands for what is not there."""
    return {
        "mmcore": mmcore.__version__,
        "python": platform.python_version(),
        **{package: _version(package) for package in ("torch", "numpy", "triton")},
        "threads": torch.get_num_threads(),
        "backends": list(NAMES),
        "cpu": _cpu(),
        "gpu": _gpu(),
        "variables": {name: os.environ.get(name) for name in VARIABLES},
        "op_families": {
            family: {name: "own" if has_file(name, family) else "reference" for name in COMPILED}
            for family in FAMILIES
        },
    }


def text(found: dict[str, Any]) -> str:
    """The facts as lines, and a table of the op families."""
    lines = [f"{what}: {state}" for what, state in _states(found)]
    heading = "Backends serve an op family themselves, or leave it to the reference:"
    return "\n".join([*lines, "", heading, *_table(found["op_families"])])


def _states(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    yield "mmcore", found["mmcore"]
    yield "python", found["python"]
    for package in ("torch", "numpy", "triton"):
        yield package, found[package] or "not installed"
    yield "threads", f"{found['threads']} (torch.set_num_threads)"
    yield "backends", ", ".join(found["backends"])
    yield "backend cpu", _cpu_state(found["cpu"])
    yield "gpu", _gpu_state(found["gpu"])
    for name, value in found["variables"].items():
        yield name, "not set" if value is None else value


def _table(families: dict[str, dict[str, str]]) -> Iterator[str]:
    width = max(map(len, families))
    yield " ".join(["op family".ljust(width), *(name.ljust(9) for name in COMPILED)]).rstrip()
    for family, states in families.items():
        cells = (states[name].ljust(9) for name in COMPILED)
        yield " ".join([family.ljust(width), *cells]).rstrip()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu() -> dict[str, Any]:
    """The instruction set in use comes first."""
    return {
        "available": cpu.missing_module is None,
        "is_built": find_spec("mmcore._C") is not None,
        "obstacle": cpu.missing_module,
        "instruction_sets": cpu.instruction_sets(),
        "obstacle_to_amx": cpu.obstacle_to_matrix_unit(),
    }


def _cpu_state(found: dict[str, Any]) -> str:
    if not found["available"]:
        if found["is_built"]:
            return f"unavailable: mmcore._C is there and cannot be imported ({found['obstacle']})"
        return (
            f"unavailable: the compiled module mmcore._C is missing ({found['obstacle']}), and "
            f"the reference, which is slower, serves calls on the CPU. To get it, {HOW_TO_BUILD}"
        )
    in_use, *others = found["instruction_sets"]
    obstacle = found["obstacle_to_amx"]
    without = f"; no amx: {obstacle}" if obstacle else ""
    return f"available, {in_use} in use, {', '.join(others) or 'nothing else'} at hand{without}"


def _gpu() -> dict[str, Any]:
    if not torch.cuda.is_available():
        return {"names": [], "obstacle": f"torch {torch.__version__} finds no GPU"}
    names = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
    return {"names": names, "obstacle": triton.obstacle(torch.empty(0, device="cuda"))}


def _gpu_state(found: dict[str, Any]) -> str:
    if not found["names"]:
        return f"none: {found['obstacle']}"
    obstacle = found["obstacle"]
    served = "served by triton" if obstacle is None else f"not served: {obstacle}"
    return f"{', '.join(found['names'])}: {served}"
