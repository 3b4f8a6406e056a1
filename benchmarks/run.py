"""Measure mmcore and its rivals side by side: python benchmarks/run.py --help.

Every measurement is printed and appended, as one JSON line, to benchmarks/results/<machine>.jsonl.
"""

import argparse
import itertools
from pathlib import Path

import numpy as np
import torch

import usual
from cases import CASE_TYPES, Case, make_case
from inputs import DTYPES, MODES
from machine import machine_slug, provenance
from measurements import available_providers, run_accuracy, run_memory, run_time
from providers import PROVIDER_NAMES
from recorder import Recorder

RESULTS = Path(__file__).resolve().parent / "results"
SCALE_IS = "inverse temperature; the default is the usual one of each operation"
QUICK_IS = "512 rows, 3 rounds, unless you say otherwise; recorded only with --results"
PAIR_COSINE_IS = "cosine of rows that belong together, 0.999 near convergence"


def requested_cases(arguments: argparse.Namespace) -> list[Case]:
    """Every combination asked for; an axis that an operation does not have adds no case."""
    ops = CASE_TYPES if "all" in arguments.op else arguments.op
    axes = itertools.product(
        ops,
        arguments.dtype,
        arguments.scale,
        arguments.pair_cosine,
        arguments.width,
        arguments.rows,
    )
    cases = (
        make_case(
            op,
            rows=rows,
            width=width,
            input_width=arguments.input_width,
            dtype=dtype,
            scale=scale,
            pair_cosine=pair_cosine,
        )
        for op, dtype, scale, pair_cosine, width, rows in axes
    )
    return list(dict.fromkeys(cases))


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--op", choices=[*CASE_TYPES, "all"], nargs="+", default=["clip"])
    add("--rows", type=int, nargs="+", help="N, rows of x and y; 8192, or 512 with --quick")
    add("--width", type=int, nargs="+", default=[512], help="D, embedding width")
    add("--input-width", type=int, default=1024, help="K, columns before the projection")
    add("--scale", type=float, nargs="+", default=[None], help=SCALE_IS)
    add("--pair-cosine", type=float, nargs="+", default=[usual.PAIR_COSINE], help=PAIR_COSINE_IS)
    add("--dtype", choices=list(DTYPES), nargs="+", default=["float32"])
    add("--mode", choices=MODES, nargs="+", default=["forward+backward"], help="what is timed")
    add("--providers", choices=PROVIDER_NAMES, nargs="+", default=list(PROVIDER_NAMES))
    add("--repeats", type=int, help="timed rounds; 3 with --quick, else what fits a budget of time")
    add("--threads", type=int, help="threads of torch; the default is torch's own")
    add("--memory", action="store_true", help="also measure peak memory")
    add("--accuracy", action="store_true", help="also measure errors against float64")
    add("--no-time", action="store_true", help="leave the timing out")
    add("--quick", action="store_true", help=QUICK_IS)
    add("--results", type=Path, help="the file to append to")
    return parser


def parse_arguments() -> argparse.Namespace:
    """What is asked for, its cases among it; exits where there is no such measurement."""
    parser = command_line()
    arguments = parser.parse_args()
    for name in ("rows", "width", "input_width", "repeats", "threads"):
        given = getattr(arguments, name)
        if given is not None and np.min(given) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {given}")
    if any(scale is not None and scale <= 0 for scale in arguments.scale):
        parser.error(f"--scale must be positive, got {arguments.scale}")
    if any(not 0 <= cosine <= 1 for cosine in arguments.pair_cosine):
        parser.error(f"--pair-cosine must be from 0 to 1, got {arguments.pair_cosine}")
    arguments.rows = arguments.rows or [512 if arguments.quick else 8192]
    if arguments.quick:
        arguments.repeats = arguments.repeats or 3
    try:
        arguments.cases = requested_cases(arguments)
    except ValueError as error:  # a size that an operation cannot have
        parser.error(str(error))
    return arguments


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    path = arguments.results or RESULTS / f"{machine_slug()}.jsonl"
    recorder = Recorder(None if arguments.quick and not arguments.results else path, provenance())
    for case in arguments.cases:
        sizes = "  ".join(f"{name} {size:,}" for name, size in case.shape.items())
        print(f"{case.op}  {sizes}  {case.dtype}  threads {torch.get_num_threads()}")
        providers = available_providers(case.op, tuple(arguments.providers))
        if not arguments.no_time:
            for mode in arguments.mode:
                print(f" time, {mode}:")
                run_time(providers, case, mode, arguments.repeats, recorder)
        if arguments.memory:
            print(" memory:")
            run_memory(providers, case, recorder)
        if arguments.accuracy:
            print(" accuracy:")
            run_accuracy(providers, case, recorder)
    print(f"recorded in {recorder.path.name}" if recorder.path else "nothing recorded")


if __name__ == "__main__":
    main()
