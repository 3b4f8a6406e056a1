"""Interleaved times on a GPU, and with them the peak memory of the same providers.

Before a provider is timed, its first call is compared with plain float32 formulas (gpu_trusted.py).
"""

import gc
import time
from dataclasses import dataclass

import numpy as np
import torch

from cases import Case
from gpu_device import CallTime, first_line
from gpu_session import Session, float32_precision, workspace_of
from gpu_trusted import Results, disagreement, trusted_results
from inputs import MODES, Mode
from machine import others_cpu_seconds
from measure import Interleaved, Timing, call
from measurements import time_figures
from memory import in_mebibytes, total_bytes
from providers.on_gpu import PRODUCT_ALONE
from providers.provider import Built, Provider
from similarity_cases import SimilarityCase

NO_TIME_LEFT = "no time left"


@dataclass(eq=False)
class Contender:
    """A provider that has shown right numbers, and the times of its calls."""

    provider: Provider
    built: Built
    times: list[CallTime]


def run_time(
    session: Session, case: Case, mode: Mode, precision: str, names: tuple[str, ...]
) -> None:
    """Times of all providers of a case; over forward and backward their peak memory as well."""
    # A fresh start per case: else the recompile limit would drop later shapes back to eager.
    torch.compiler.reset()
    with float32_precision("highest"):
        trusted = first_results(session, case, mode)
    with float32_precision(precision):
        contenders = [
            found
            for provider in session.providers(case.op, names)
            if (found := prepare(session, provider, case, mode, trusted)) is not None
        ]
        del trusted
        session.device.free()
        if not contenders:
            return
        contenders, others_cores = time_rounds(session, contenders, case, mode)
        for each in contenders:
            figures = figures_of(session, each, case, mode, precision, others_cores)
            session.record("time", each.provider.name, case, figures)
        if mode == MODES[1]:
            for each in contenders:
                run_memory(session, each.provider, each.built, case, mode)


def first_results(session: Session, case: Case, mode: Mode) -> Results:
    """What every provider's first call is compared with."""
    inputs = case.make_inputs(0, session.device.name)
    upstream = case.make_output_gradient(0, session.device.name)
    value, gradients = trusted_results(case, inputs, upstream, mode)
    return value.detach(), gradients


def prepare(
    session: Session, provider: Provider, case: Case, mode: Mode, trusted: Results
) -> Contender | None:
    """Build, compile, compare; None, with the reason recorded, where that fails."""
    found: list[Built] = []

    def first_call() -> str | None:
        for require in provider.requirements:
            require()
        built = provider.build(case, mode)
        inputs = case.make_inputs(0, session.device.name)
        upstream = case.make_output_gradient(0, session.device.name)
        with workspace_of(built):
            results = call(built.function, inputs, upstream, mode)
        found.append(built)
        if provider.name == PRODUCT_ALONE:
            return None
        return disagreement(results, trusted, case)

    if session.seconds_left() <= 0:
        session.skip("time", provider.name, case, mode, NO_TIME_LEFT)
        return None
    reason = session.attempt(provider.name, first_call)
    if reason is not None:
        session.skip("time", provider.name, case, mode, reason)
        return None
    return Contender(provider, found[0], [])


def time_rounds(
    session: Session, contenders: list[Contender], case: Case, mode: Mode
) -> tuple[list[Contender], float]:
    """Every contender in turns; who fails on the way is out. Also cores that others took."""
    retries = session.device.allocation_retries()
    for seed in (1, 2):  # the first round fills the allocator's cache, the second tells the time
        begin = time.perf_counter()
        contenders = one_round(session, contenders, case, mode, seed, is_crowded=False)
        round_s = time.perf_counter() - begin
    # Where all do not fit beside each other, each would pay for the memory that the last one left.
    is_crowded = session.device.allocation_retries() > retries
    limits = session.rounds
    affordable_s = min(limits.budget_s, max(session.seconds_left(), 0.0))
    rounds = int(np.clip(affordable_s / round_s, limits.fewest, limits.most))
    for each in contenders:
        each.times.clear()
    gc.collect()
    gc.disable()
    start, others_start = time.perf_counter(), others_cpu_seconds()
    try:
        for index in range(rounds):
            first = index % max(len(contenders), 1)
            turns = contenders[first:] + contenders[:first]
            seed = 3 + index * len(turns)
            remaining = one_round(session, turns, case, mode, seed, is_crowded)
            contenders = [each for each in contenders if each in remaining]
    finally:
        gc.enable()
    others_cores = (others_cpu_seconds() - others_start) / (time.perf_counter() - start)
    return contenders, max(others_cores, 0.0)


def one_round(
    session: Session,
    contenders: list[Contender],
    case: Case,
    mode: Mode,
    seed: int,
    is_crowded: bool,
) -> list[Contender]:
    """One timed call of each; returns those that have not failed."""
    remaining = []
    for turn, each in enumerate(contenders):
        reason = None
        try:
            if is_crowded:
                session.device.free()
                session.time_call(each.built, case, mode, seed + turn)
            each.times.append(session.time_call(each.built, case, mode, seed + turn))
            remaining.append(each)
        except Exception as error:
            reason = f"failed while it was timed: {first_line(error)}"
        if reason is not None:
            session.attempt(each.provider.name, lambda: None)  # gives its memory back
            session.skip("time", each.provider.name, case, mode, reason)
    return remaining


def figures_of(
    session: Session,
    contender: Contender,
    case: Case,
    mode: Mode,
    precision: str,
    others_cores: float,
) -> dict[str, object]:
    """The figures of a result line of kind `time`."""
    name = contender.provider.name
    roof = session.roofs.get((case.dtype, precision))
    timing = Timing(tuple(each.time_ms for each in contender.times))
    measured = Interleaved({name: timing}, roof, None, others_cores)
    host_ms = float(np.median([each.host_ms for each in contender.times]))
    return {
        **time_figures(measured, name, case, mode),
        "host_ms_p50": round(host_ms, 4),
        "options": contender.built.options,
    }


def run_memory(
    session: Session,
    provider: Provider,
    built: Built,
    case: Case,
    mode: Mode,
    warm_up: Case | None = None,
) -> None:
    """Peak memory of one call after one that compiles; with the leanest settings, if any."""
    figures: dict[str, object] = {}

    def measure() -> None:
        leanest = provider.build_lean(case, mode) if provider.build_lean else built
        session.time_call(leanest, warm_up or case, mode, seed=0)
        session.device.free()
        figures.update(memory_figures(session, leanest, case))
        accumulators = case.accumulator_bytes() if isinstance(case, SimilarityCase) else 0
        figures["accumulator_mib"] = in_mebibytes(accumulators if provider.is_mmcore else 0)

    reason = session.attempt(provider.name, measure)
    if reason is None:
        session.record("memory", provider.name, case, {"mode": mode, **figures})
    else:
        session.skip("memory", provider.name, case, mode, reason)


def memory_figures(session: Session, built: Built, case: Case) -> dict[str, object]:
    """What torch's allocator hands out during one forward and backward."""
    device = session.device
    inputs = case.make_inputs(1, device.name)
    upstream = case.make_output_gradient(1, device.name)
    device.free()
    before = device.allocated_bytes()
    device.reset_peak()
    begin = time.perf_counter()
    with workspace_of(built):
        output = built.function(**inputs)
        forward_bytes = device.peak_bytes() - before - total_bytes([output])
        gradients = torch.autograd.grad(output, tuple(inputs.values()), upstream)
    device.synchronize()
    time_ms = (time.perf_counter() - begin) * 1e3
    peak_bytes = device.peak_bytes() - before
    if not bool(output.isfinite().all()):
        raise ValueError("wrong: the value is not finite")
    results = [output, *gradients]
    given = [*inputs.values(), *([] if upstream is None else [upstream])]
    return {
        "peak_mib": in_mebibytes(peak_bytes - total_bytes(results)),
        "peak_mib_with_gradients": in_mebibytes(peak_bytes),
        "peak_mib_forward": in_mebibytes(forward_bytes),
        "interface_mib": in_mebibytes(total_bytes([*given, *results])),
        "time_ms_single_call": round(time_ms, 3),
        "options": built.options,
    }
