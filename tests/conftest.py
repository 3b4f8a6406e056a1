"""Every backend as one fixture, so that one test body serves them all (machines.py)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib.util import find_spec
from types import FunctionType

# Threads of one process that wait for each other leave their processors to the other processes.
# libgomp reads it when torch loads it.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# NumPy's, for Triton's interpreter: the products of a tile are too small for a second thread.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

from machines import BACKENDS, COMPILED, DEVICE, IS_FULL, IS_GPU, TIER

if not IS_GPU:
    # Triton reads it when it is imported, and torch may import Triton.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import tiers
import torch
from objective_cases import WIDTH

import mmcore
from mmcore.backends import cpu
from mmcore.backends.reference import gram
from mmcore.bench.catalogue import Case

if not IS_GPU and find_spec("triton") is not None:
    import interpreter

    interpreter.install()


def pytest_configure() -> None:
    """Puts every tensor on the GPU that is tested, or stops where there is none."""
    if not IS_GPU:
        return
    if not torch.cuda.is_available():
        reason = f"tests on {DEVICE} need a GPU that torch can use: torch {torch.__version__}"
        pytest.exit(f"{reason} sees none", returncode=1)
    torch.set_default_device(DEVICE)


def pytest_report_header() -> str:
    """The tier and the instruction sets, whose tests the fast tier selects by them."""
    return f"mmcore: {TIER} tier, instruction sets: {', '.join(available()) or 'none'}"


def available() -> list[str]:
    """The instruction sets that the tests may select here, the best first."""
    only = os.environ.get("MMCORE_CPU_ISA")
    built = [] if IS_GPU or cpu._C is None else cpu._C.instruction_sets()
    names = {name.removeprefix("cpu-") for name in COMPILED} & set(built)
    default = None if cpu._C is None else cpu._C.instruction_set()
    return sorted(names & {only} if only else names, key=lambda name: (name != default, name))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leaves out what is not of the fast tier."""
    if IS_FULL:
        return
    kept = tiers.selected(items, available())
    config.stash[tiers.COLLECTED] = (list(items), [item for item in items if item in kept])
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


def pytest_make_parametrize_id(val: object, argname: str) -> str | None:
    """Ids that say what is tested: float16, 60x50x20, columns=True."""
    if isinstance(val, Case):
        return val.id
    if isinstance(val, torch.dtype):
        return str(val).removeprefix("torch.")
    if isinstance(val, bool):
        return f"{argname}={val}"
    if isinstance(val, FunctionType) and not val.__name__.startswith("<"):
        return val.__name__
    if isinstance(val, (tuple, list)) and all(isinstance(each, (int, float)) for each in val):
        return "x".join(map(str, val)) if isinstance(val, tuple) else str(val)
    if isinstance(val, (tuple, list)) and all(isinstance(each, str) for each in val):
        return "+".join(val)
    return None


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
    before = None if cpu._C is None else cpu._C.instruction_set()
    with mmcore.backend(_enter(name)):
        yield name
    if before is not None:
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


@pytest.fixture(params=[f"cpu-{name}" for name in available()[:1]])
def best(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test on the instruction set that mmcore takes here."""
    yield from _selected(request.param)


@pytest.fixture(params=[f"cpu-{name}" for name in available()[1:]])
def others(request: pytest.FixtureRequest) -> Iterator[str]:
    """Runs the test once per instruction set that mmcore does not take here by itself."""
    yield from _selected(request.param)


@pytest.fixture(params=BACKENDS)
def machine(request: pytest.FixtureRequest) -> str:
    """The name of every backend; nothing is selected."""
    name: str = request.param
    return name


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture
def several_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Gram matrices 50 rows at a time, where there are as many columns as `objective_cases` has."""
    monkeypatch.setattr(gram, "SLAB_BYTES", dict.fromkeys(gram.SLAB_BYTES, 4 * WIDTH * 50))


@pytest.fixture
def small_slabs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Columns of several ranks as few at a time as the workspace says."""
    monkeypatch.setattr("mmcore.ops.sharded.slabs.LEAST_COLUMNS", 1)


@pytest.fixture
def threads() -> Iterator[None]:
    """Puts torch's thread count back after a test that changes it."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)
