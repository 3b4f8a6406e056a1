"""Measure searches beside their rivals: python benchmarks/retrieval.py --help.

All providers take turns in one process. Wall and processor times, and the peak of memory above the
inputs in a process of its own, are appended to benchmarks/results/<machine>.jsonl.
"""

import argparse
import gc
import json
import os
import subprocess
import sys
import time
from pathlib import Path

# Before faiss loads its OpenBLAS, which does not know new processors.
if "avx512bw" in Path("/proc/cpuinfo").read_text():
    os.environ.setdefault("OPENBLAS_CORETYPE", "SkylakeX")

import numpy as np
import torch

from machine import machine_slug, others_cpu_seconds, provenance, versions
from memory import MIB, give_back_free_memory, reset_high_water_mark, status_bytes
from notes import MOST_OTHERS_CORES
from recorder import Recorder
from retrieval_cases import CASES, SEARCHERS, Search, SearchCase

FAISS_SETTING = f"OPENBLAS_CORETYPE={os.environ.get('OPENBLAS_CORETYPE', '')}"
RESULTS = Path(__file__).resolve().parent / "results"
ROUNDS = 7
QUICK = (SearchCase(3, 700, 5, width=48), SearchCase(40, 300, 3, width=48))


def prepare(case: SearchCase, name: str, gallery: torch.Tensor) -> Search | None:
    """The provider's search; None where its library is missing."""
    try:
        return SEARCHERS[name](case, gallery)
    except ImportError as error:
        print(f"  {name:<27} skipped: {error}")
        return None


def times(case: SearchCase, rounds: int) -> tuple[dict[str, list[tuple[float, float]]], float]:
    """(wall, processor) milliseconds of each provider in turns, and the cores of others."""
    gallery = case.rows(case.gallery, 0)
    every = {name: prepare(case, name, gallery) for name in SEARCHERS}
    searches = {name: search for name, search in every.items() if search is not None}
    for search in searches.values():
        search(case.rows(case.queries, 1))
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in searches}
    order = list(searches)
    gc.collect()
    start, others = time.perf_counter(), others_cpu_seconds()
    for index in range(rounds):
        first = index % len(order)
        for name in order[first:] + order[:first]:
            queries = case.rows(case.queries, 2 + index)
            before = time.perf_counter(), time.process_time()
            searches[name](queries)
            after = time.perf_counter(), time.process_time()
            found[name].append(tuple((b - a) * 1e3 for a, b in zip(before, after, strict=True)))
    return found, (others_cpu_seconds() - others) / (time.perf_counter() - start)


def peak_mib(case: SearchCase, name: str) -> float | None:
    """Memory above queries and gallery, of a search in a fresh process."""
    command = [sys.executable, __file__, "--peak", json.dumps([case.title, name])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return float(done.stdout.splitlines()[-1]) if done.returncode == 0 else None


def print_peak(title: str, name: str) -> None:
    """In the fresh process. What a provider makes of the gallery beforehand counts."""
    (case,) = (case for case in (*CASES, *QUICK) if case.title == title)
    warm_up = case.rows(64, 3)
    search = prepare(case, name, warm_up)
    if search is not None:
        search(warm_up[:1])
    gallery, queries = case.rows(case.gallery, 0), case.rows(case.queries, 1)
    give_back_free_memory()
    reset_high_water_mark()
    before = status_bytes("VmRSS")
    search = prepare(case, name, gallery)
    if search is None:
        sys.exit(1)
    search(queries)
    print(round((status_bytes("VmHWM") - before) / MIB, 1))


def record(case: SearchCase, rounds: int, recorder: Recorder) -> None:
    """Every provider's line of one case."""
    print(case.title)
    found, others = times(case, rounds)
    names = [name for name in found if not name.startswith("mmcore")]
    p50 = {name: np.median(found[name], axis=0) for name in found}
    for name, (wall, processor) in p50.items():
        figures: dict[str, object] = {
            "time_ms_p50": round(float(wall), 3),
            "time_ms_min": round(min(each[0] for each in found[name]), 3),
            "processor_ms_p50": round(float(processor), 3),
            "rounds": rounds,
            "peak_mib": peak_mib(case, name),
            "options": FAISS_SETTING if name == "faiss" else "",
            "others_cores": round(max(others, 0.0), 2),
        }
        if name not in names:
            figures |= {f"times_of_{rival}": round(p50[rival][0] / wall, 3) for rival in names}
        recorder.record("retrieval", name, case, figures)
    if others > MOST_OTHERS_CORES:
        print(f"  others used {others:.1f} cores meanwhile: measure again")


def command_line() -> argparse.ArgumentParser:
    """Everything that can be asked for."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    add = parser.add_argument
    add("--only", nargs="+", metavar="CASE", help="cases whose titles begin with one of these")
    add("--rounds", type=int, default=ROUNDS, help="searches of each provider")
    add("--quick", action="store_true", help="does it run? Small cases, recorded nowhere")
    add("--results", type=Path, help="the file to append to")
    add("--dry", action="store_true", help="record nothing")
    add("--peak", help=argparse.SUPPRESS)
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    arguments = command_line().parse_args()
    if arguments.peak:
        print_peak(*json.loads(arguments.peak))
        return 0
    chosen = [case for case in CASES if case.title.startswith(tuple(arguments.only or ("",)))]
    used = versions(("torch", "mmcore", "numpy", "faiss-cpu"))
    of_run = {**provenance(), "threads": torch.get_num_threads(), "versions": used}
    path = arguments.results or RESULTS / f"{machine_slug()}.jsonl"
    is_dry = arguments.dry or (arguments.quick and arguments.results is None)
    recorder = Recorder(None if is_dry else path, of_run)
    for case in QUICK if arguments.quick else chosen:
        record(case, 2 if arguments.quick else arguments.rounds, recorder)
    return 0


if __name__ == "__main__":
    sys.exit(main())
