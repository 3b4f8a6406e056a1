"""Every objective beside its rival: python benchmarks/objectives.py [--rows N] [--only NAME …].

Interleaved, as run.py does it, and recorded as lines of kind `objective`.
"""

import argparse
from pathlib import Path

from contests import Contest, contests
from machine import machine_slug, provenance
from measure import Function, time_interleaved
from measurements import time_figures
from notes import MOST_OTHERS_CORES
from recorder import Recorder
from results import OURS

RESULTS = Path(__file__).resolve().parent / "results"
MODE = "forward+backward"


def built(contest: Contest) -> dict[str, Function]:
    """mmcore and those rivals that are installed; for every other one the reason is printed."""
    functions = {OURS: contest.ours}
    for name, build in contest.rivals.items():
        try:
            functions[name] = build()
        except ImportError as error:
            print(f"  {name:<27} skipped: {error}")
    return functions


def main() -> None:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("--rows", type=int, default=4096, help="N; default 4096")
    parser.add_argument("--only", nargs="+", help="names of objectives, or their beginnings")
    parser.add_argument("--rounds", type=int, help="timed rounds; the default fits a budget")
    parser.add_argument("--results", type=Path, help="the file to append to")
    parser.add_argument("--dry", action="store_true", help="record nothing")
    arguments = parser.parse_args()
    path = arguments.results or RESULTS / f"{machine_slug()}.jsonl"
    recorder = Recorder(None if arguments.dry else path, provenance())
    for contest in contests(arguments.rows):
        if arguments.only and not contest.op.startswith(tuple(arguments.only)):
            continue
        print(f"{contest.op}  N {contest.rows:,}  D {contest.width:,}")
        functions = built(contest)
        measured = time_interleaved(functions, contest, MODE, arguments.rounds)
        for name in functions:
            figures = time_figures(measured, name, contest, MODE)
            recorder.record("objective", name, contest, {**figures, "options": ""})
        if measured.others_cores > MOST_OTHERS_CORES:
            print(f"  others used {measured.others_cores:.1f} cores meanwhile: measure again")


if __name__ == "__main__":
    main()
