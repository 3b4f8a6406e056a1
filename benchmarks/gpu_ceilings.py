"""What this GPU reaches at all, in the same run: large products of each dtype, and a large copy."""

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from gpu_session import Session, float32_precision
from inputs import DTYPES, normal, seeded

# An idle GPU takes a while to reach its clock.
WARM_UP_CALLS, CALLS = 20, 10
PRODUCTS = (("bfloat16", "highest"), ("float32", "highest"), ("float32", "high"))


@dataclass(frozen=True)
class Ceiling:
    """A plain operation whose rate bounds what a kernel can reach."""

    op: str
    shape: dict[str, int]
    dtype: str


def run_ceilings(session: Session, size: int, copied_bytes: int) -> None:
    """Products of size³, and a copy; the products become the roofs of the run."""
    for dtype, precision in PRODUCTS:
        ceiling = Ceiling("matmul", {"rows": size, "columns": size, "width": size}, dtype)
        generator = seeded(0, session.device.name)
        a, b = (normal(generator, size, size).to(DTYPES[dtype]) for _ in range(2))
        with float32_precision(precision):
            figures = time_figures(session, lambda a=a, b=b: a @ b)
            gflop_s = 2 * size**3 / figures["time_ms_p50"] / 1e6
            session.roofs[dtype, precision] = gflop_s
            figures["gflop_s"] = round(gflop_s, 2)
            session.record("ceiling", "torch-mm", ceiling, figures)
    ceiling = Ceiling("copy", {"bytes": copied_bytes}, "uint8")
    source, target = (
        torch.zeros(copied_bytes, dtype=torch.uint8, device=session.device.name) for _ in range(2)
    )
    figures = time_figures(session, lambda: target.copy_(source))
    # Bytes are read as well as written.
    figures["bandwidth_gb_s"] = round(2 * copied_bytes / figures["time_ms_p50"] / 1e6, 1)
    session.record("ceiling", "torch-copy", ceiling, figures)


def time_figures(session: Session, action: Callable[[], object]) -> dict[str, object]:
    """Percentiles of some calls after those that warm up."""
    calls = (session.device.time(action) for _ in range(WARM_UP_CALLS + CALLS))
    times = [each.time_ms for each in itertools.islice(calls, WARM_UP_CALLS, None)]
    figures = {f"time_ms_p{p}": round(float(np.percentile(times, p)), 5) for p in (20, 50, 80)}
    return {"mode": "forward", **figures, "rounds": CALLS}
