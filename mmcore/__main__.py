"""``python -m mmcore``: what is available here, why the rest is not, and what serves each op.

``python -m mmcore tune``: look for the fastest tiles of the Triton kernels on this GPU, and keep
them for every later process.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import sys
from collections.abc import Iterator

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
)


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
    for variable in VARIABLES:
        yield variable, os.environ.get(variable, "not set")


def matrix() -> Iterator[str]:
    """A line for each op family: which backends have a file of it."""
    width = max(len(family) for family in FAMILIES)
    yield " ".join(["op family".ljust(width), *(name.ljust(9) for name in COMPILED)]).rstrip()
    for family in FAMILIES:
        states = ("own" if has_file(name, family) else "reference" for name in COMPILED)
        yield " ".join([family.ljust(width), *(state.ljust(9) for state in states)]).rstrip()


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_state() -> str:
    if cpu.missing_module is not None:
        return f"unavailable: mmcore._C could not be imported ({cpu.missing_module})"
    in_use, *others = cpu.instruction_sets()
    obstacle = cpu.obstacle_to_matrix_unit()
    without = f"; no amx: {obstacle}" if obstacle else ""
    return f"available, {in_use} in use, {', '.join(others) or 'nothing else'} at hand{without}"


def _gpu_state() -> str:
    if not torch.cuda.is_available():
        return f"none that torch {torch.__version__} can use; GPU tensors need one"
    names = ", ".join(torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count()))
    obstacle = triton.obstacle(torch.empty(0, device="cuda"))
    return f"{names}: " + ("served by triton" if obstacle is None else f"not served: {obstacle}")


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(prog="python -m mmcore", description=__doc__)
    commands = parser.add_subparsers(dest="command")
    tune = commands.add_parser("tune", help="look for the fastest tiles on this GPU; takes minutes")
    tune.add_argument("--rows", type=int, default=16384, help="N, rows of the features")
    tune.add_argument("--width", type=int, nargs="+", default=[512, 768], help="D, their columns")
    tune.add_argument("--dtype", choices=["bfloat16", "float16"], default="bfloat16")
    return parser


def tune(rows: int, widths: list[int], dtype: str) -> None:
    """Measures tiles for every width, and files the fastest."""
    obstacle = "torch sees no GPU"
    if torch.cuda.is_available():
        obstacle = triton.obstacle(torch.empty(0, device="cuda")) or ""
    if obstacle:
        sys.exit(f"tiles can be tuned on a GPU that Triton serves alone: {obstacle}")
    from triton.testing import do_bench

    from mmcore import tuning
    from mmcore.backends.triton import tuned_tiles

    device = torch.device("cuda", torch.cuda.current_device())
    major, _ = torch.cuda.get_device_capability(device)
    tiles = list(tuning.candidates(major >= tuning.COPIES_TILES_SINCE and not torch.version.hip))
    for width in widths:
        print(f"{rows} rows of {width} columns, {dtype}, {len(tiles)} tiles for each kind")
        with device:
            found = tuning.tune(
                rows, width, getattr(torch, dtype), tiles,
                lambda call: float(do_bench(call, return_mode="median")),
            )  # fmt: skip
        print(f"filed in {tuned_tiles.save(tuned_tiles.gpu_name(device), found)}")


def main() -> None:
    """Prints the report, or tunes."""
    arguments = command_line().parse_args()
    if arguments.command == "tune":
        tune(arguments.rows, arguments.width, arguments.dtype)
        return
    for what, state in lines():
        print(f"{what}: {state}")
    print("\nBackends serve an op family themselves, or leave it to the reference:")
    print("\n".join(matrix()))


if __name__ == "__main__":
    main()
