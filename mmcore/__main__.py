"""``python -m mmcore``: reports what is available here, checks and tunes it, or searches files."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Iterator

import torch

import mmcore
from mmcore import report
from mmcore.backends import triton
from mmcore.retrieval import command as retrieve

DESCRIPTION = "Reports what mmcore finds here, why the rest is unavailable, what serves each op."
VERIFY_IS = "compare every op family with float64, on the GPU or else on the CPU; a minute"
TUNE_IS = "look for the fastest tiles of the Triton kernels on this GPU, and keep them; minutes"


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(prog="python -m mmcore", description=DESCRIPTION)
    parser.add_argument("--version", action="version", version=f"mmcore {mmcore.__version__}")
    parser.add_argument("--json", action="store_true", help="report as JSON, for programs")
    commands = parser.add_subparsers(dest="command")
    verify = commands.add_parser("verify", help=VERIFY_IS, description=VERIFY_IS)
    verify.add_argument("--device", help="cpu, cuda, cuda:1, … (default: a GPU where there is one)")
    # Without a default, which would replace that of the option before the command.
    suppressed = argparse.SUPPRESS
    verify.add_argument("--json", action="store_true", default=suppressed, help="for programs")
    tune = commands.add_parser("tune", help=TUNE_IS, description=TUNE_IS)
    add = tune.add_argument
    add("--rows", type=int, default=16384, help="N, rows of the features (default %(default)s)")
    widths = [512, 768]
    add("--width", type=int, nargs="+", default=widths, help="D, their columns (default 512 768)")
    add("--dtype", choices=["bfloat16", "float16"], default="bfloat16", help="default %(default)s")
    retrieve.add_to(commands)
    return parser


def verify(device: str | None, as_json: bool) -> None:
    """Prints every check, and exits with 1 where one failed."""
    from mmcore import verify as checking

    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    found: list[checking.Check] = []

    def kept() -> Iterator[checking.Check]:
        for check in checking.checks(chosen):
            found.append(check)
            yield check

    if as_json:
        print(json.dumps([check.as_json() for check in kept()], indent=2))
    else:
        for line in checking.table(kept()):
            print(line, flush=True)
        print(checking.summary(found))
    if not all(check.passed for check in found):
        sys.exit(1)


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


def run() -> None:
    """Does what the command line asks for."""
    parser = command_line()
    arguments = parser.parse_args()
    if arguments.command == "verify":
        verify(arguments.device, arguments.json)
        return
    if arguments.command is not None and arguments.json:
        parser.error(f"--json is for the report, {arguments.command} has none")
    if arguments.command == "tune":
        tune(arguments.rows, arguments.width, arguments.dtype)
        return
    if arguments.command == "retrieve":
        retrieve.run(arguments)
        return
    found = report.facts()
    print(json.dumps(found, indent=2) if arguments.json else report.text(found))


def main() -> None:
    """Runs, and ends quietly where nobody reads on, as behind ``| head -3``."""
    try:
        try:
            run()
        finally:
            print(end="", flush=True)
    except BrokenPipeError:
        # Else Python flushes once more when it exits, and reports that it cannot.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


if __name__ == "__main__":
    main()
