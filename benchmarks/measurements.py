"""The three kinds of measurement of one case: time, memory, accuracy."""

import torch

from accuracy import measure_errors, reference_estimate_bytes
from cases import Case
from inputs import MODES, Mode
from machine import available_memory_bytes
from measure import Interleaved, time_interleaved
from memory import MemoryMeasurementError, measure_peak_memory
from notes import MOST_OTHERS_CORES
from providers import Provider, eager_function, providers_of
from recorder import Recorder

# The rest is for the system, the inputs, and the estimate's own error.
USABLE_SHARE_OF_MEMORY = 0.85


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
    # A peak of arithmetic says nothing about moving bytes.
    if fma_peak_gflop_s and case.is_bound_by_arithmetic:
        figures["fma_peak_gflop_s"] = round(fma_peak_gflop_s, 2)
        figures["share_of_peak"] = round(gflop_s / fma_peak_gflop_s, 4)
    if measured.matrix_unit_gflop_s is not None:
        figures["matrix_unit_gflop_s"] = round(measured.matrix_unit_gflop_s, 1)
    figures["others_cores"] = round(measured.others_cores, 2)
    return figures


def run_time(
    providers: list[Provider], case: Case, mode: Mode, rounds: int | None, recorder: Recorder
) -> None:
    """Interleaved times of all providers."""
    fitting = fitting_providers(providers, case, "time", mode, recorder)
    if not fitting:
        return
    # A fresh start per case: else the recompile limit would drop later shapes back to eager.
    torch.compiler.reset()
    built = {provider.name: provider.build(case, mode) for provider in fitting}
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
    comparable = [provider for provider in providers if provider.has_same_gradients]
    fitting = fitting_providers(comparable, case, "accuracy", mode, recorder)
    torch.compiler.reset()
    built = {each.name: (each.build_lean or each.build)(case, mode) for each in fitting}
    functions = {name: each.function for name, each in built.items()}
    functions.setdefault("torch-eager", eager_function(case))
    errors = measure_errors(functions, case)
    beside = {f"eager_{quantity}": error for quantity, error in errors["torch-eager"].items()}
    for name, each in built.items():
        figures = {"mode": mode, **errors[name], **beside, "options": each.options}
        recorder.record("accuracy", name, case, figures)
