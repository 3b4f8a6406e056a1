"""Interleaved timing: A B C, B C A, C A B, … with fresh inputs and cold caches for every call.

Sequential rounds (all of A, then all of B) measure the machine's mood as much as the code: clocks,
neighbours and page caches drift. Interleaving gives every provider the same weather.
"""

import gc
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from cases import Case
from inputs import DTYPES, Mode
from machine import others_cpu_seconds

Function = Callable[..., torch.Tensor]

# More than any last-level cache that one benchmark process has to itself.
EVICTION_BYTES = 128 * 2**20
FEWEST_ROUNDS, MOST_ROUNDS, ROUNDS_BUDGET_S = 7, 50, 20.0


@dataclass(frozen=True)
class Timing:
    """Times of one provider on one case, in milliseconds."""

    times_ms: tuple[float, ...]

    def percentile(self, percent: float) -> float:
        """The time that `percent` of the calls stay below."""
        return float(np.percentile(self.times_ms, percent))


@dataclass(frozen=True)
class Interleaved:
    """A Timing for every provider, and what the machine did meanwhile."""

    timings: dict[str, Timing]
    # Medians of samples in between; None where nobody can tell, or where there is no such unit.
    fma_peak_gflop_s: float | None
    matrix_unit_gflop_s: float | None
    # How many cores other processes and the hypervisor took.
    others_cores: float


def call(
    function: Function,
    inputs: Mapping[str, torch.Tensor],
    output_gradient: torch.Tensor | None,
    mode: Mode,
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    """One call as a training step makes it: the value, and the gradient of every input."""
    if mode == "forward":
        with torch.no_grad():
            return function(**inputs), ()
    value = function(**inputs)
    # grad(), not backward(): no accumulation into .grad, whose cost would be the same for all.
    return value, torch.autograd.grad(value, tuple(inputs.values()), output_gradient)


def time_call_ms(function: Function, case: Case, mode: Mode, seed: int) -> float:
    """Wall time of one call on inputs nobody has seen, with everything out of the caches."""
    inputs = case.make_inputs(seed)
    output_gradient = case.make_output_gradient(seed)
    torch.ones(EVICTION_BYTES // 4)
    start = time.perf_counter()
    # Held until the clock has stopped: giving memory back is the next step's business.
    result = call(function, inputs, output_gradient, mode)
    stop = time.perf_counter()
    del result
    return (stop - start) * 1e3


def fma_peak_gflop_s(dtype: torch.dtype) -> float | None:
    """Multiply-adds of this dtype that torch's threads reach now; None where nobody can tell."""
    try:
        from mmcore.backends.cpu import measure_peak
    except ImportError:
        return None
    try:
        return float(measure_peak(dtype))
    except RuntimeError:  # mmcore without its compiled module
        return None


def matrix_unit_gflop_s() -> float | None:
    """What the matrix unit multiplies now: on a shared machine its rate changes."""
    try:
        from mmcore.backends.cpu import instruction_sets
    except ImportError:
        return None
    return fma_peak_gflop_s(torch.bfloat16) if "amx" in instruction_sets()[:1] else None


def count_rounds(functions: Iterable[Function], case: Case, mode: Mode) -> int:
    """As many rounds as fit the budget; the two calls that tell also warm everything up."""
    round_ms = 0.0
    for function in functions:
        time_call_ms(function, case, mode, seed=0)  # compiles, plans, starts threads
        round_ms += time_call_ms(function, case, mode, seed=1)
    return int(np.clip(ROUNDS_BUDGET_S * 1e3 / round_ms, FEWEST_ROUNDS, MOST_ROUNDS))


def time_interleaved(
    functions: Mapping[str, Function], case: Case, mode: Mode, rounds: int | None = None
) -> Interleaved:
    """Time functions in turns; the order rotates, so that nobody always goes first."""
    names = list(functions)
    # Warm up in any case, also where the caller has chosen the number of rounds.
    affordable_rounds = count_rounds(functions.values(), case, mode)
    rounds = affordable_rounds if rounds is None else rounds
    times_ms: dict[str, list[float]] = {name: [] for name in names}
    peaks: list[float] = []
    rates: list[float] = []
    gc.collect()
    gc.disable()
    start, others_start = time.perf_counter(), others_cpu_seconds()
    try:
        for index in range(rounds):
            first = index % len(names)
            for turn, name in enumerate(names[first:] + names[:first]):
                seed = 2 + index * len(names) + turn
                times_ms[name].append(time_call_ms(functions[name], case, mode, seed))
            if (peak := fma_peak_gflop_s(DTYPES[case.dtype])) is not None:
                peaks.append(peak)
            if (rate := matrix_unit_gflop_s()) is not None:
                rates.append(rate)
    finally:
        gc.enable()
    others_cores = (others_cpu_seconds() - others_start) / (time.perf_counter() - start)
    timings = {name: Timing(tuple(times)) for name, times in times_ms.items()}
    return Interleaved(timings, _median(peaks), _median(rates), max(others_cores, 0.0))


def _median(samples: list[float]) -> float | None:
    return float(np.median(samples)) if samples else None
