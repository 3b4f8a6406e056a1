"""Launches by plan pass to the driver what Triton's launcher passes, byte for byte, or leave it
the launch.

Real launches over a libcuda that records (stub_libcuda.c); no GPU is needed. MMCORE_TEST_TRITON
names a folder with another Triton to run against:

    pip install --target FOLDER --no-deps triton==3.6.0
    MMCORE_TEST_TRITON=FOLDER .venv/bin/python -m pytest tests/test_launch_plan.py
"""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from collections.abc import Iterator

import house
import pytest
from assembly import Figures, compiler
from machines import IS_GPU

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(IS_GPU, reason="the driver is the GPU's own")

# Compared whole: kernels of every family, Hopper's own among them.
STEPS = {
    "clip": "hopper_sum_exponentials_kernel",
    "clip in chunks": "hopper_store_gradient_kernel",
    "clip of rows that are not aligned": "sum_exponentials_kernel",
    "clip in float16": "hopper_store_gradient_kernel",
    "labels and biases": "store_gradient_kernel",
    "many rows": "largest_gradients_kernel",
    "cached sigmoid": "from_cached_kernel",
    "siglip": "hopper_sigmoid_tile_kernel",
    "siglip of rows that are not aligned": "sigmoid_tile_kernel",
    "l2_normalize": "l2_normalize_backward_kernel",
    "project": "input_norm_forward_kernel",
    "queue": "hopper_sum_exponentials_kernel",
    "labels": "norms_and_targets_kernel",
    "hardest negatives": "hardest_negatives_kernel",
}

# Forms of these: other dtypes, exact tiles, vectors that are not there. `make test-all` has them.
FORMS = {
    "clip in float32": "store_gradient_kernel",
    "one side": "hopper_sum_exponentials_kernel",
    "labels and biases in float16": "sum_exponentials_kernel",
    "labels and biases in chunks": "store_gradient_kernel",
    "one side in float16": "hopper_store_gradient_kernel",
    "one side in float32": "sum_exponentials_kernel",
    "shared targets": "norms_and_targets_kernel",
}
every_step = pytest.mark.parametrize(
    "name", [*STEPS, *(pytest.param(name, marks=pytest.mark.full) for name in FORMS)]
)


def decorators() -> dict[str, list[str]]:
    """Of every kernel that Python launches: its file and name, and what stands above it."""
    return {
        f"{path}: {node.name}": [ast.unparse(each) for each in node.decorator_list]
        for path in house.files((".py",), "mmcore/backends/triton/")
        for node in ast.walk(house.parsed(path))
        if isinstance(node, ast.FunctionDef) and node.name.endswith("_kernel")
        if house.is_jitted(node)
    }


@pytest.fixture(scope="module")
def reports() -> Iterator[Figures]:
    """What launches passed to the driver."""
    folder = os.environ.get("MMCORE_TEST_TRITON")
    others = os.environ.get("PYTHONPATH")
    variables = {"PYTHONPATH": f"{folder}:{others}" if others else folder} if folder else {}
    with compiler("launch_plan_reports.py", **variables) as figures:
        yield figures


@every_step
def test_launches_of_the_ops_are_those_of_triton(reports: Figures, name: str) -> None:
    """Catches a parameter that is left out, packed wrongly or taken from another call, and a kernel
    of mmcore that no plan serves.
    """
    report = reports("step", name)
    assert report["differences"] == []
    assert report["unplanned"] == []
    assert (STEPS | FORMS)[name] in report["kernels"]


def test_every_kernel_is_compared(reports: Figures) -> None:
    """Catches a kernel that none of the steps launches."""
    seen = {kernel for name in STEPS for kernel in reports("step", name)["kernels"]}
    assert {name.rpartition(" ")[2] for name in decorators()} == seen


def test_arguments_of_every_kind(reports: Figures) -> None:
    """Catches a number of the wrong width or rounding, a constant passed as a parameter, and a plan
    that serves another alignment, width or constant than its own.
    """
    report = reports("every_kind")
    assert report["differences"] == []
    assert report["unplanned"] == []
    assert report["plans"] > 25


def test_two_kernels_of_triton_are_never_one_plan(reports: Figures) -> None:
    """Catches a plan that is reused for a call for which Triton would have compiled anew."""
    report = reports("keys", 3000)
    assert report["wrong"] == []
    assert report["planned"] > report["calls"] / 2


@pytest.mark.parametrize("version", [13010, 13020])
def test_matrices_are_described_as_triton_does(reports: Figures, version: int) -> None:
    """Catches sizes, strides or boxes in the wrong order, a padding that is ignored, and a map of a
    small matrix that is not mended for drivers up to 13.1.
    """
    report = reports("descriptions", version)
    assert report["differences"] == []
    assert report["encoded"] == ["descriptor_kernel", "volume_kernel"]


def test_grids_of_every_form(reports: Figures) -> None:
    """Catches axes in the wrong order, an empty grid that reaches the driver, a grid that is to be
    called, and a launch without its clusters.
    """
    report = reports("grids")
    assert report["differences"] == []
    assert report["called_by_triton"]
    assert "grid 6 1 1 " in report["by_call"][0]


def test_hooks_see_every_launch(reports: Figures) -> None:
    """Catches a profiler that misses launches, and launches that stay slow after it has left."""
    report = reports("hooks")
    assert report == {
        "enter": [0, 2, 1], "exit": [0, 2, 1], "function": [0, 2, 1], "debug": [0, 0, 1],
        "before_run": [0, 1],
    }  # fmt: skip


def test_kernels_with_further_needs_are_left_to_triton(reports: Figures) -> None:
    """Catches a launch without its cooperative grid or its dependency."""
    report = reports("needs")
    assert report == {"cooperative": [0, 3], "dependent": [0, 3]}


def test_arguments_of_unknown_types_are_left_to_triton(reports: Figures) -> None:
    """Catches an error, or a wrong address, where an argument is like a tensor but is none, and a
    plan that keeps a tensor's memory because it was among the constants.
    """
    report = reports("foreign")
    assert report["planned"] == 0
    assert not report["keeps"]
    assert all("parameters 0010000000000000 " in line for (line,) in report["lines"])


def test_a_launch_that_fails_raises(reports: Figures) -> None:
    """Catches a result of the driver that is ignored, a message without the kernel's name, and a
    wrong call that no longer raises.
    """
    messages = reports("failure")
    assert messages["plan"] == (
        "launching the kernel plain_kernel failed: CUDA_ERROR_LAUNCH_FAILED (719)"
    )
    assert "CUDA_ERROR_LAUNCH_FAILED" in messages["triton"]
    assert (messages["option"], messages["argument"]) == ("KeyError", "TypeError")


def test_streams_contexts_threads_and_tensors(reports: Figures) -> None:
    """Catches a stream that was kept, a handle of another context, a launch lost between threads,
    a tensor whose memory stays, and a reference that every launch leaves behind.
    """
    report = reports("surroundings")
    assert report["streams"] == ["(nil)", "0x9", hex(2**47 + 1), "0x7"]
    assert report["contexts"] == 1
    assert report["launches"] == 2000
    assert report["is_gone"]
    assert report["kept_blocks"] < 100
    assert report["returns"] == "CompiledKernel"


def test_without_a_driver_triton_launches(reports: Figures) -> None:
    """Catches a launch that needs a libcuda which the extension does not find."""
    assert reports("without_driver") == {"by": "KernelInterface.__getitem__", "launches": 1}


@pytest.mark.parametrize(
    ("before", "value"), [("", "0"), ("import sys; sys.modules['mmcore._launch'] = None", "1")]
)
def test_triton_launches_where_plans_are_off_or_missing(before: str, value: str) -> None:
    """Catches a variable that is ignored, and an installation without the extension that breaks."""
    code = f"""{before}
from mmcore.backends.triton.l2_normalize import l2_normalize_forward_kernel as kernel
from mmcore.backends.triton.hopper.gradient import hopper_store_gradient_kernel as of_gluon
print(type(kernel).__name__, type(of_gluon).__name__)"""
    environment = {name: each for name, each in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environment | {"MMCORE_LAUNCH_PLAN": value},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["JITFunction", "GluonJITFunction"]


def test_every_kernel_is_planned() -> None:
    """Catches a kernel that is launched from Python without @planned."""
    assert [name for name, found in decorators().items() if found[0] != "planned"] == []
