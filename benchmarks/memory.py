"""Peak memory of one provider on one case, above inputs, output and gradients.

Each measurement has a fresh process, because an allocator that has grown does not shrink: run after
another provider, a call would find its memory already there. The child makes and touches the
inputs, starts the high-water mark afresh, runs forward and backward once, and reads the mark again.

peak_mib is the whole peak less inputs, output and gradients, whether or not the gradients existed
at the peak. peak_mib_forward, the peak of the forward pass alone, has no gradients taken off it.
accumulator_mib is counted, not measured: float32 sums of 16-bit gradients, a part of mmcore's peak.
"""

import ctypes
import gc
import json
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path

import torch

from cases import CASE_TYPES, Case
from inputs import MODES
from machine import read_kib
from measure import call
from providers import Provider, providers_of
from similarity_cases import SimilarityCase

# Enough to load libraries and start threads, too little to leave buffers behind.
WARM_UP_ROWS = 64
MIB = 2**20


class MemoryMeasurementError(RuntimeError):
    """The child process did not finish; the message says why."""


def measure_peak_memory(provider: Provider, case: Case) -> dict[str, object]:
    """The figures of one call in a fresh process, and its options."""
    request = {
        "op": case.op,
        "case": asdict(case),
        "provider": provider.name,
        "threads": torch.get_num_threads(),
    }
    command = [sys.executable, str(Path(__file__).resolve()), json.dumps(request)]
    child = subprocess.run(command, capture_output=True, text=True)
    if child.returncode < 0:
        raise MemoryMeasurementError(f"killed by signal {-child.returncode}")
    if child.returncode > 0:
        raise MemoryMeasurementError((child.stderr.strip().splitlines() or ["no message"])[-1])
    figures: dict[str, object] = json.loads(child.stdout.splitlines()[-1])
    return figures


def measure_in_this_process(provider: Provider, case: Case) -> dict[str, object]:
    """The measurement itself; the process must be fresh."""
    forward_and_backward = MODES[1]
    built = (provider.build_lean or provider.build)(case, forward_and_backward)
    # Compiling is not the call's memory, and it happens at the full shape only.
    warm_up = case if built.is_compiled else replace(case, rows=WARM_UP_ROWS)
    call(
        built.function,
        warm_up.make_inputs(seed=0),
        warm_up.make_output_gradient(seed=0),
        forward_and_backward,
    )
    inputs = case.make_inputs(seed=1)
    output_gradient = case.make_output_gradient(seed=1)
    give_back_free_memory()
    reset_high_water_mark()
    before_bytes = status_bytes("VmRSS")
    start = time.perf_counter()
    output = built.function(**inputs)
    forward_bytes = status_bytes("VmHWM") - before_bytes - total_bytes([output])
    gradients = torch.autograd.grad(output, tuple(inputs.values()), output_gradient)
    time_ms = (time.perf_counter() - start) * 1e3
    results = [output, *gradients]
    peak_bytes = status_bytes("VmHWM") - before_bytes - total_bytes(results)
    upstream = [] if output_gradient is None else [output_gradient]
    accumulators = case.accumulator_bytes() if isinstance(case, SimilarityCase) else 0
    return {
        "peak_mib": in_mebibytes(peak_bytes),
        "peak_mib_forward": in_mebibytes(forward_bytes),
        "accumulator_mib": in_mebibytes(accumulators if provider.is_mmcore else 0),
        "interface_mib": in_mebibytes(total_bytes([*inputs.values(), *upstream, *results])),
        "time_ms_single_call": round(time_ms, 3),
        "options": built.options,
    }


def in_mebibytes(size_bytes: int) -> float:
    """MiB to one digit; what is below zero is the counters' own granularity."""
    return round(max(size_bytes, 0) / MIB, 1)


def status_bytes(field: str) -> int:
    """A size that /proc/self/status reports: VmRSS is now, VmHWM the most so far."""
    return read_kib("/proc/self/status", field) * 1024


def total_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes that tensors occupy together."""
    return sum(each.numel() * each.element_size() for each in tensors)


def reset_high_water_mark() -> None:
    """Let VmHWM start from the present size.

    Where that is not permitted the inputs' making stays in it, and peak_mib is an upper bound.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        print("the high-water mark cannot be reset: peak_mib is an upper bound", file=sys.stderr)


def give_back_free_memory() -> None:
    """Return freed heap pages to the system, or the call under test would reuse them unseen."""
    gc.collect()
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if malloc_trim is not None:
        malloc_trim(0)


def main() -> None:
    """Read the request from the command line, print the figures as the last line of stdout."""
    request = json.loads(sys.argv[1])
    torch.set_num_threads(request["threads"])
    case = CASE_TYPES[request["op"]](**request["case"])
    (provider,) = providers_of(request["op"], (request["provider"],))
    print(json.dumps(measure_in_this_process(provider, case)))


if __name__ == "__main__":
    main()
