"""What a loss over several processes costs: python benchmarks/distribution.py --help.

Three parts. Counted: bytes and collectives at 8, 64 and 1,024 ranks, beside their formulas.
Predicted: the efficiency over GPUs, recorded nowhere. Measured: time and memory of a step of one or
two processes on this CPU, beside open_clip's formula and sentence-transformers' cached loss,
appended to benchmarks/results/<machine>.jsonl.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

import distribution_ranks
from distribution_steps import BESIDE, PROVIDERS, RANKS, DistributedCase, providers
from exchange_counts import print_counts
from exchange_model import Machine, print_predictions
from machine import machine_slug, provenance, versions
from notes import MOST_OTHERS_CORES
from recorder import Recorder

RESULTS = Path(__file__).resolve().parent / "results"
PARTS = ("counted", "predicted", "measured")
COUNTED_RANKS, COUNTED_ROWS, COUNTED_WIDTH = (8, 64, 1024), 160, 16
PREDICTED_RANKS, PREDICTED_WIDTH = (8, 16, 64, 256, 1024), 768
ROWS = (512, 2048)
ROUNDS = 8


def cases(rows: Sequence[int]) -> list[DistributedCase]:
    """Those of so many rows a rank."""
    sizes = {"ranking": (1, RANKS)}
    return [
        DistributedCase(op, count, ranks)
        for op in PROVIDERS
        for ranks in sizes.get(op, (RANKS,))
        for count in rows
    ]


def figures(case: DistributedCase, rounds: int) -> dict[str, dict[str, object]]:
    """The result lines' figures by provider: of the slower rank, and the larger peak."""
    found: dict[str, dict[str, object]] = {}
    ranks = distribution_ranks.run("times", case, rounds)
    for name in providers(case.op):
        wall, processor = (
            np.max([rank[kind][name] for rank in ranks], axis=0) for kind in ("wall", "processor")
        )
        peaks = [rank["peak_mib"] for rank in distribution_ranks.run("memory", case, name)]
        found[name] = {
            "mode": case.mode,
            "time_ms_p50": round(float(np.median(wall)), 3),
            "processor_ms_p50": round(float(np.median(processor)), 3),
            "rounds": rounds,
            "peak_mib": max(peaks),
            "others_cores": round(max(rank["others_cores"] for rank in ranks), 2),
        }
    beside = BESIDE[case.op]
    for name, line in found.items():
        if name != beside and beside in found:
            line["beside"] = beside
            line |= ratios(line, found[beside])
    return found


def ratios(ours: Mapping[str, object], theirs: Mapping[str, object]) -> dict[str, float]:
    """Times and peak over those of the other; no ratio to a peak that is none."""
    names = {"time": "time_ms_p50", "processor": "processor_ms_p50", "peak": "peak_mib"}
    return {
        f"ratio_{short}": round(ours[name] / theirs[name], 3)
        for short, name in names.items()
        if theirs[name]
    }


def measure(cases: Sequence[DistributedCase], rounds: int, recorder: Recorder) -> None:
    """Every case's lines."""
    print("\nMeasured: processes of one thread each on this CPU, over gloo")
    missing = {name for case in cases for name in {*PROVIDERS[case.op]} - {*providers(case.op)}}
    for name in sorted(missing):
        package = name.removesuffix("-cached")
        print(f"{name} is left out, because {package} is not installed: pip install {package}")
    for case in cases:
        print(case.title)
        found = figures(case, rounds)
        for name, line in found.items():
            recorder.record("distribution", name, case, line)
        others = max(line["others_cores"] for line in found.values())
        if others > MOST_OTHERS_CORES:
            print(f"  others used {others:.1f} cores meanwhile: measure again")


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--part", nargs="+", choices=PARTS, default=PARTS, help="default: all three")
    add("--only", nargs="+", metavar="CASE", help="measured cases whose titles begin with these")
    add("--ranks", nargs="+", type=int, default=COUNTED_RANKS, help="of the counted part; even")
    add("--rows", type=int, nargs="+", help="rows of a rank, instead of 512 and 2,048")
    add("--rounds", type=int, default=ROUNDS, help="steps of each provider")
    add("--results", type=Path, help="the file to append to")
    add("--dry", action="store_true", help="record nothing")
    return parser


def main() -> int:
    """Print and measure what the command line asks for; 1 where counts differ from formulas."""
    arguments = command_line().parse_args()
    is_right = True
    if "counted" in arguments.part:
        is_right = print_counts(tuple(arguments.ranks), COUNTED_ROWS, COUNTED_WIDTH)
    if "predicted" in arguments.part:
        print_predictions(Machine(), PREDICTED_RANKS, PREDICTED_WIDTH)
    if "measured" in arguments.part:
        begins = tuple(arguments.only or ("",))
        chosen = [case for case in cases(arguments.rows or ROWS) if case.title.startswith(begins)]
        used = versions(("torch", "mmcore", "numpy", "sentence-transformers"))
        of_run = {**provenance(), "threads": 1, "versions": used}
        path = arguments.results or RESULTS / f"{machine_slug()}.jsonl"
        measure(chosen, arguments.rounds, Recorder(None if arguments.dry else path, of_run))
    return 0 if is_right else 1


if __name__ == "__main__":
    sys.exit(main())
