"""Measure the host's time of a training step without a GPU: python benchmarks/host.py --help.

torch and Triton launch kernels over a libcuda that does nothing, so that what is left is the time
of the host. This checkout, an older commit and plain PyTorch take turns, each in a process of its
own. Results are ratios to the older commit, appended to benchmarks/results/<machine>.jsonl.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from host_steps import CASES, HostCase
from machine import machine_slug, provenance, versions
from recorder import Recorder
from trees import REPOSITORY, MissingCommitError, python_for, tree_of

RESULTS = Path(__file__).resolve().parent / "results"
BUILD = REPOSITORY / "build"
BEFORE = "9efbf71"
# Steps that one process takes before it is the next one's turn.
STEPS_OF_A_TURN = 25
ROUNDS = 20


@dataclass(frozen=True)
class Provider:
    """Whose step it is: the name in results, what the worker calls, its sources, its settings."""

    name: str
    kind: str
    tree: Path | None = None
    settings: Mapping[str, str] | None = None

    @property
    def options(self) -> str:
        """As a result line has them."""
        return " ".join(f"{name}={value}" for name, value in (self.settings or {}).items())


LAUNCHED_BY_TRITON = Provider("mmcore-triton-launcher", "mmcore", None, {"MMCORE_LAUNCH_PLAN": "0"})
PLANNED = Provider("mmcore-triton", "mmcore")
EAGER = Provider("torch-eager", "torch")


def providers(before: str) -> dict[str, Provider]:
    """By name: the older commit first, where git has it."""
    found = [LAUNCHED_BY_TRITON, PLANNED, EAGER]
    try:
        found.insert(0, Provider(f"mmcore-{before}", "mmcore", tree_of(before, "mmcore")))
    except MissingCommitError as error:
        print(f"  mmcore-{before:<20} skipped: {error}")
    return {provider.name: provider for provider in found}


def stub_libcuda() -> Path:
    """The folder of the libcuda that does nothing, compiled by the C compiler."""
    folder = BUILD / "stub"
    folder.mkdir(parents=True, exist_ok=True)
    library, source = folder / "libcuda.so.1", REPOSITORY / "tests" / "stub_libcuda.c"
    if not library.exists() or library.stat().st_mtime < source.stat().st_mtime:
        made = folder / f"libcuda.{os.getpid()}.so"
        compiler = os.environ.get("CC", "cc")
        options = ("-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1")
        subprocess.run([compiler, *options, "-o", made, source], check=True)
        made.replace(library)
    link = folder / "libcuda.so"  # the name by which Triton's own C files are linked
    if not link.exists():
        link.symlink_to(library.name)
    return folder


class Worker:
    """A process that takes steps when it is asked to."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def times(self, case: HostCase, steps: int) -> list[float]:
        """The processor time of each step, in microseconds."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps((case.title, steps)) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise RuntimeError(f"a process has ended while it took steps of {case.title}")
        return [float(time) for time in json.loads(answer)]


@contextmanager
def started(provider: Provider, stub: Path) -> Iterator[Worker]:
    """The provider's process."""
    command, environment = python_for(provider.tree)
    environment |= {
        "OMP_NUM_THREADS": "1",
        "TRITON_LIBCUDA_PATH": str(stub),
        "TRITON_CACHE_DIR": str(BUILD / "triton"),
        **(provider.settings or {}),
    }
    script = Path(__file__).with_name("host_worker.py")
    process = subprocess.Popen(
        [*command, str(script), provider.kind, str(stub / "libcuda.so.1")],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process)
    finally:
        if process.stdin is not None:
            process.stdin.close()
        process.wait()


def measured(workers: Mapping[str, Worker], case: HostCase, rounds: int) -> dict[str, list[float]]:
    """The times of every provider, in turns; the order rotates."""
    names = list(workers)
    times: dict[str, list[float]] = {name: [] for name in names}
    for worker in workers.values():
        worker.times(case, 1)  # compiles
    for index in range(rounds):
        first = index % len(names)
        for name in names[first:] + names[:first]:
            times[name] += workers[name].times(case, STEPS_OF_A_TURN)
    return times


def figures(
    times: Mapping[str, list[float]], name: str, before: str, case: HostCase
) -> dict[str, object]:
    """The figures of one provider's result line: ratios, and what they are ratios of."""
    ours, theirs = times[name], times.get(before)
    found: dict[str, object] = {
        "mode": case.mode,
        "host_us_min": round(min(ours), 1),
        "host_us_p10": round(float(np.percentile(ours, 10)), 1),
        "steps": len(ours),
    }
    if theirs is not None and name != before:
        found["before"] = before
        found["ratio_min"] = round(min(ours) / min(theirs), 3)
        found["ratio_p10"] = round(float(np.percentile(ours, 10) / np.percentile(theirs, 10)), 3)
    goals = {LAUNCHED_BY_TRITON.name: case.goal, PLANNED.name: case.goal_of_plan}
    if goals.get(name) is not None:
        found["goal"] = goals[name]
    return found


def print_table(rows: Mapping[str, Mapping[str, Mapping[str, object]]], before: str) -> None:
    """Of every case the ratios, with the goals beside them."""
    names = (LAUNCHED_BY_TRITON.name, PLANNED.name, EAGER.name)
    print(f"\nThe host's time over that of {before} (tenth percentiles), and goals")
    print(f"{'':<22}", *(f"{name:>25}" for name in names))
    for title, row in rows.items():
        cells = []
        for name in names:
            goal = row[name].get("goal")
            beside = "" if goal is None else f"  (≤ {goal})"
            cells.append(f"{row[name].get('ratio_p10', 'unknown')}{beside}")
        print(f"{title:<22}", *(f"{cell:>25}" for cell in cells))


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--only", nargs="+", metavar="CASE", help="cases whose titles begin with one of these")
    add("--before", default=BEFORE, help=f"the commit to compare with; default {BEFORE}")
    add("--rounds", type=int, default=ROUNDS, help=f"turns of {STEPS_OF_A_TURN} steps each")
    add("--results", type=Path, help="the file to append to")
    add("--dry", action="store_true", help="record nothing")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    arguments = command_line().parse_args()
    chosen = [case for case in CASES if case.title.startswith(tuple(arguments.only or ("",)))]
    path = arguments.results or RESULTS / f"{machine_slug()}.jsonl"
    used = versions(("torch", "triton", "mmcore", "numpy"))
    of_run = {**provenance(), "threads": 1, "versions": used}
    recorder = Recorder(None if arguments.dry else path, of_run)
    before, stub, rows = f"mmcore-{arguments.before}", stub_libcuda(), {}
    every = providers(arguments.before)
    with ExitStack() as stack:
        workers = {
            name: stack.enter_context(started(provider, stub)) for name, provider in every.items()
        }
        for case in chosen:
            print(case.title)
            times = measured(workers, case, arguments.rounds)
            row = rows[case.title] = {}
            for name, provider in every.items():
                row[name] = figures(times, name, before, case)
                line = {**row[name], "options": provider.options}
                recorder.record("host", name, case, line)
    print_table(rows, before)
    return 0


if __name__ == "__main__":
    sys.exit(main())
