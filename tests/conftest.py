"""Every backend as one fixture, so that one test body serves them all.

Each instruction set counts as a backend. MMCORE_CPU_ISA narrows the list to that one. Triton's
kernels run in its interpreter, on CPU tensors.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec

# Triton reads it when it is imported, and torch may import Triton.
os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

import mmcore
from mmcore.backends import cpu

INSTRUCTION_SETS = ("generic", "avx2", "avx512", "avx512_bf16")
if find_spec("triton") is not None:
    import interpreter_rounding

    interpreter_rounding.install()

COMPILED = [f"cpu-{name}" for name in INSTRUCTION_SETS]


def _enter(name: str) -> str:
    """Selects the instruction set of a "cpu-…" name; returns the backend's name."""
    only = os.environ.get("MMCORE_CPU_ISA")
    if name == "triton":
        pytest.importorskip("triton")
        if only:
            pytest.skip(f"MMCORE_CPU_ISA={only}")
    if name in ("reference", "triton"):
        return name
    wanted = name.removeprefix("cpu-")
    if only and wanted != only:
        pytest.skip(f"MMCORE_CPU_ISA={only}")
    if not cpu._C.select_instruction_set(wanted):
        pytest.skip(f"{wanted} was not built or this processor lacks it")
    return "cpu"


def _selected(name: str) -> Iterator[str]:
    before = cpu._C.instruction_set()
    with mmcore.backend(_enter(name)):
        yield name
    cpu._C.select_instruction_set(before)


@pytest.fixture(params=["reference", *COMPILED, "triton"])
def backend(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per backend and instruction set, selected for every mmcore call."""
    yield from _selected(request.param)


@pytest.fixture(params=["reference", *COMPILED])
def on_host(request: pytest.FixtureRequest) -> Iterator[str]:
    """As `backend`, where the host sees the values: targets out of range are refused."""
    yield from _selected(request.param)


@pytest.fixture(params=COMPILED)
def compiled(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set."""
    yield from _selected(request.param)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's thread count back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
