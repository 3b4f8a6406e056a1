"""Measure mmcore and its rivals side by side: python benchmarks/run.py --help.

Every measurement is printed and appended, as one JSON line, to benchmarks/results/<machine>.jsonl.
"""

import argparse
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from accuracy import measure_errors, reference_estimate_bytes
from cases import CASE_TYPES, DTYPES, MODES, Case, Mode, make_case
from machine import available_memory_bytes, machine_slug, now, provenance
from measure import Interleaved, time_interleaved
from memory import MemoryMeasurementError, measure_peak_memory
from notes import MOST_OTHERS_CORES
from providers import PROVIDER_NAMES, Provider, eager_function, providers_of

RESULTS = Path(__file__).resolve().parent / "results"
# The rest is for the system, the inputs, and the estimate's own error.
USABLE_SHARE_OF_MEMORY = 0.85


@dataclass(frozen=True)
class Recorder:
    """Prints measurements and appends them to the results file, if there is one."""

    path: Path | None
    provenance: dict[str, object]

    def record(self, kind: str, provider: str, case: Case, figures: Mapping[str, object]) -> None:
        """One measurement: one printed line, one JSON line."""
        line = {
            "kind": kind,
            "op": case.op,
            "provider": provider,
            "shape": case.shape,
            "dtype": case.dtype,
            **figures,
            **self.provenance,
            "date": now(),
        }
        shown = [f"{name} {show(it)}" for name, it in figures.items() if is_worth_showing(name, it)]
        print(f"  {provider:<27}", *shown, sep="  ", flush=True)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")


def is_worth_showing(name: str, figure: object) -> bool:
    """Whether a figure goes to the terminal as well: eager's errors have a line of their own."""
    return name != "mode" and figure != "" and not name.startswith("eager_")


def show(figure: object) -> str:
    """A figure for the terminal."""
    if isinstance(figure, float):
        return f"{figure:.4g}" if abs(figure) < 1e4 else f"{figure:.0f}"
    return "unknown" if figure is None else str(figure)


def available_providers(op: str, names: tuple[str, ...]) -> list[Provider]:
    """Providers that can run here; for every other one the reason is printed."""
    found = []
    for provider in providers_of(op, names):
        reason = provider.unavailable_reason()
        if reason is None:
            found.append(provider)
        else:
            print(f"  {provider.name:<27} skipped: {reason}")
    return found


def memory_refusal(needed_bytes: int) -> str | None:
    """Why something is not even tried; None where it should fit."""
    available_bytes = available_memory_bytes()
    if needed_bytes <= USABLE_SHARE_OF_MEMORY * available_bytes:
        return None
    return f"needs about {needed_bytes / 2**30:.0f} GiB, {available_bytes / 2**30:.0f} GiB are free"


def fitting_providers(
    providers: list[Provider], case: Case, kind: str, mode: Mode, recorder: Recorder
) -> list[Provider]:
    """Providers whose memory should suffice; the others are recorded as skipped."""
    fitting = []
    for provider in providers:
        reason = memory_refusal(provider.peak_estimate_bytes(case))
        if reason is None:
            fitting.append(provider)
        else:
            recorder.record(kind, provider.name, case, {"mode": mode, "skipped": reason})
    return fitting


def time_figures(measured: Interleaved, name: str, case: Case, mode: Mode) -> dict[str, object]:
    """The figures of one provider's result line of kind `time`."""
    timing, fma_peak_gflop_s = measured.timings[name], measured.fma_peak_gflop_s
    seconds = timing.percentile(50) / 1e3
    gflop_s = case.flop_count(mode) / seconds / 1e9
    figures: dict[str, object] = {"mode": mode}
    for percent in (20, 50, 80):
        figures[f"time_ms_p{percent}"] = round(timing.percentile(percent), 4)
    figures["rounds"] = len(timing.times_ms)
    figures["gflop_s"] = round(gflop_s, 2)
    figures["bandwidth_gb_s"] = round(case.byte_count(mode) / seconds / 1e9, 3)
    figures["fma_peak_gflop_s"] = figures["share_of_peak"] = None
    # A peak of float32 lanes says nothing about narrower types, nor about moving bytes.
    if fma_peak_gflop_s and case.dtype == "float32" and case.is_bound_by_arithmetic:
        figures["fma_peak_gflop_s"] = round(fma_peak_gflop_s, 2)
        figures["share_of_peak"] = round(gflop_s / fma_peak_gflop_s, 4)
    figures["others_cores"] = round(measured.others_cores, 2)
    return figures


def run_time(
    providers: list[Provider], case: Case, mode: Mode, rounds: int | None, recorder: Recorder
) -> None:
    """Interleaved times of all providers."""
    fitting = fitting_providers(providers, case, "time", mode, recorder)
    built = {provider.name: provider.build(case, mode) for provider in fitting}
    if not built:
        return
    functions = {name: each.function for name, each in built.items()}
    measured = time_interleaved(functions, case, mode, rounds)
    for name in functions:
        figures = time_figures(measured, name, case, mode)
        recorder.record("time", name, case, {**figures, "options": built[name].options})
    if measured.others_cores > MOST_OTHERS_CORES:
        print(f"  others used {measured.others_cores:.1f} cores meanwhile: measure again")


def run_memory(providers: list[Provider], case: Case, recorder: Recorder) -> None:
    """Peak memory of each provider over forward and backward, in a process of its own."""
    mode = MODES[1]
    for provider in fitting_providers(providers, case, "memory", mode, recorder):
        try:
            figures = measure_peak_memory(provider, case)
        except MemoryMeasurementError as error:
            figures = {"skipped": str(error)}
        recorder.record("memory", provider.name, case, {"mode": mode, **figures})


def run_accuracy(providers: list[Provider], case: Case, recorder: Recorder) -> None:
    """Errors against float64, with those of eager torch in the same dtype beside them."""
    mode = MODES[1]
    reason = memory_refusal(reference_estimate_bytes(case))
    if reason is not None:
        print(f"  accuracy skipped: the float64 yardstick {reason}")
        return
    fitting = fitting_providers(providers, case, "accuracy", mode, recorder)
    built = {each.name: (each.build_lean or each.build)(case, mode) for each in fitting}
    functions = {name: each.function for name, each in built.items()}
    functions.setdefault("torch-eager", eager_function(case.op))
    errors = measure_errors(functions, case)
    beside = {f"eager_{quantity}": error for quantity, error in errors["torch-eager"].items()}
    for name, each in built.items():
        figures = {"mode": mode, **errors[name], **beside, "options": each.options}
        recorder.record("accuracy", name, case, figures)


def requested_cases(arguments: argparse.Namespace) -> Iterator[Case]:
    """Every combination asked for; an axis that an operation does not have adds no case."""
    ops = CASE_TYPES if arguments.op == "all" else [arguments.op]
    axes = itertools.product(ops, arguments.dtype, arguments.width, arguments.rows)
    for op, dtype, width, rows in axes:
        yield make_case(
            op,
            rows=rows,
            width=width,
            input_width=arguments.input_width,
            dtype=dtype,
            scale=arguments.scale,
        )


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--op", choices=[*CASE_TYPES, "all"], default="clip")
    add("--rows", type=int, nargs="+", default=[8192], help="N, rows of x and y")
    add("--width", type=int, nargs="+", default=[512], help="D, embedding width")
    add("--input-width", type=int, default=1024, help="K, columns before the projection")
    add("--scale", type=float, default=100.0, help="inverse temperature of the CLIP loss")
    add("--dtype", choices=list(DTYPES), nargs="+", default=["float32"])
    add("--mode", choices=MODES, nargs="+", default=["forward+backward"], help="what is timed")
    add("--providers", choices=PROVIDER_NAMES, nargs="+", default=list(PROVIDER_NAMES))
    add("--repeats", type=int, help="timed rounds; the default fits a budget of time")
    add("--threads", type=int, help="threads of torch; the default is torch's own")
    add("--memory", action="store_true", help="also measure peak memory")
    add("--accuracy", action="store_true", help="also measure errors against float64")
    add("--no-time", action="store_true", help="leave the timing out")
    add("--quick", action="store_true", help="512 rows, 3 rounds; recorded only with --results")
    add("--results", type=Path, help="the file to append to")
    arguments = parser.parse_args()
    for name in ("rows", "width", "input_width", "repeats", "threads"):
        given = getattr(arguments, name)
        if given is not None and np.min(given) < 1:
            parser.error(f"--{name.replace('_', '-')} must be positive, got {given}")
    if arguments.quick:
        arguments.rows, arguments.repeats = [512], arguments.repeats or 3
    return arguments


def main() -> None:
    """Measure what the command line asks for."""
    arguments = parse_arguments()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    path = arguments.results or RESULTS / f"{machine_slug()}.jsonl"
    recorder = Recorder(None if arguments.quick and not arguments.results else path, provenance())
    for case in requested_cases(arguments):
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
