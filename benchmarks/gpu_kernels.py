"""Time by kernel of one forward and backward, and what the kernels reach whose work is known."""

import re
from collections import defaultdict
from collections.abc import Iterable

import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import profile

from cases import Case
from gpu_session import Session, workspace_of
from inputs import DTYPES, MODES, Mode
from measure import call
from providers.on_gpu import OURS

# cuBLAS, cuBLASLt, CUTLASS, hipBLASLt.
LIBRARY_PRODUCT = re.compile(r"gemm|nvjet|cutlass|xmma|Cijk", re.IGNORECASE)
LIBRARY_PRODUCTS, EVERY_KERNEL, OTHER_KERNELS = "library products", "all", "others"
LEAST_SHARE = 0.005
LONGEST_NAME = 120


def run_kernels(session: Session, case: Case) -> None:
    """One line for each kernel of mmcore's that takes any time to speak of."""
    mode = MODES[1]
    for provider in session.providers(case.op, (OURS,)):
        lines: list[dict[str, object]] = []

        def measure(provider=provider, lines=lines) -> str | None:
            built = provider.build(case, mode)
            session.time_call(built, case, mode, seed=0)
            inputs = case.make_inputs(1, session.device.name)
            upstream = case.make_output_gradient(1, session.device.name)
            session.device.synchronize()
            with profile(activities=[session.device.profiled_activity]) as profiled:
                with workspace_of(built):
                    call(built.function, inputs, upstream, mode)
                session.device.synchronize()
            events = profiled.events()
            kernels = [e for e in events if e.device_type == session.device.profiled_type]
            lines.extend(kernel_figures(kernels, case, mode, session))
            return None if lines else "the profiler saw no kernel"

        reason = session.attempt(provider.name, measure)
        if reason is not None:
            session.skip("kernel", provider.name, case, mode, reason)
        for figures in lines:
            session.record("kernel", provider.name, case, {"mode": mode, **figures})


def kernel_figures(
    events: Iterable[FunctionEvent], case: Case, mode: Mode, session: Session
) -> list[dict[str, object]]:
    """Calls, time and share of every kernel, longest first; and rates where the work is known."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
    for event in events:
        for name in lines_of(event.name):
            totals[name][0] += 1
            totals[name][1] += event.time_range.elapsed_us() / 1e3
    every_ms = totals[EVERY_KERNEL][1]
    if every_ms == 0:
        return []
    known = {**flops_of_kernels(case, session.device.name), **bytes_of_kernels(case)}
    small = [n for n, (_, ms) in totals.items() if ms < LEAST_SHARE * every_ms and n not in known]
    for name in small:
        count, time_ms = totals.pop(name)
        totals[OTHER_KERNELS][0] += count
        totals[OTHER_KERNELS][1] += time_ms
    ordered = sorted(totals.items(), key=lambda item: -item[1][1])
    return [
        {
            "kernel": name,
            "calls": int(calls),
            "time_ms": round(time_ms, 4),
            "share": round(time_ms / every_ms, 4),
            **rates(name, time_ms, case, session),
        }
        for name, (calls, time_ms) in ordered
    ]


def lines_of(name: str) -> tuple[str, ...]:
    """The lines that a kernel counts in: its own, that of the library's products, that of all."""
    short = name.replace("(anonymous namespace)::", "").split("(", 1)[0][:LONGEST_NAME]
    if LIBRARY_PRODUCT.search(name):
        return short, LIBRARY_PRODUCTS, EVERY_KERNEL
    return short, EVERY_KERNEL


def kept_share(case: Case, device: str) -> float:
    """How much of the matrix mmcore keeps from forward to backward, with its default workspace."""
    from mmcore.backends.triton.kept_size import rows_of_exponentials
    from mmcore.backends.workspace import current

    if case.dtype != "bfloat16":
        return 0.0
    numbers = rows_of_exponentials(current(device), case.rows, case.rows)
    kept_bytes = numbers * torch.float32.itemsize
    return min(1.0, kept_bytes / (DTYPES[case.dtype].itemsize * case.rows**2))


def flops_of_kernels(case: Case, device: str) -> dict[str, int]:
    """Of all calls together, over forward and backward.

    The softmax family multiplies nothing for rows of which the workspace keeps exponentials. The
    sigmoid family computes the matrix once where the workspace holds both gradients, as it does for
    the cases that are profiled; G·y and Gᵀ·x are the library's.
    """
    if case.op not in ("clip", "siglip"):
        return {}
    product = 2 * case.rows**2 * case.width
    return {
        "sum_exponentials_kernel": product,
        "store_gradient_kernel": int(product * (1 - kept_share(case, device))),
        "sigmoid_tile_kernel": product,
        LIBRARY_PRODUCTS: 2 * product,
    }


def bytes_of_kernels(case: Case) -> dict[str, int]:
    """What kernels of rows must read and write."""
    if case.op != "l2_normalize":
        return {}
    matrix = case.rows * case.width * DTYPES[case.dtype].itemsize
    norms = 4 * case.rows
    return {
        "l2_normalize_forward_kernel": 2 * matrix + norms,
        "l2_normalize_backward_kernel": 3 * matrix + norms,
    }


def rates(kernel: str, time_ms: float, case: Case, session: Session) -> dict[str, float]:
    """What the kernel reached; nothing where its work is not known."""
    if time_ms == 0:
        return {}
    if kernel in (moved := bytes_of_kernels(case)):
        return {"bandwidth_gb_s": round(moved[kernel] / time_ms / 1e6, 1)}
    counted = flops_of_kernels(case, session.device.name)
    if not counted.get(kernel):
        return {}
    gflop_s = counted[kernel] / time_ms / 1e6
    figures = {"gflop_s": round(gflop_s, 1)}
    roof = session.roofs.get((case.dtype, "highest"))
    if roof:
        figures |= {"fma_peak_gflop_s": round(roof, 1), "share_of_peak": round(gflop_s / roof, 4)}
    return figures
