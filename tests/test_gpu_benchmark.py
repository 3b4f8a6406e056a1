"""The benchmark of GPUs, as far as it goes without one: that it runs, and that it says why not."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parent.parent
NO_GPU = f"bench-gpu needs a GPU that torch can use: torch {torch.__version__} sees none"
KINDS = {"ceiling", "time", "memory", "accuracy", "kernel"}
ALWAYS = {"op", "shape", "dtype", "mode", "run", "date", "machine", "device", "versions", "commit"}

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")


# What `make test ARGS=…` gives to its children, and a `make` among them would take for its own.
OF_MAKE = ("ARGS", "MAKEFLAGS", "MAKEOVERRIDES", "MFLAGS")


def run(*command: str) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MMCORE_") and k not in OF_MAKE}
    return subprocess.run(
        command,
        env=kept | {"PYTHONPATH": str(REPOSITORY), "MMCORE_COMMIT": "0123abc"},
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.full
@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_every_case_runs_in_the_interpreter(tmp_path: Path) -> None:
    results = tmp_path / "smoke.jsonl"
    done = run(sys.executable, "benchmarks/gpu.py", "--smoke", "--results", str(results))
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert {line["kind"] for line in lines} == KINDS
    ours = [line for line in lines if line["provider"].startswith("mmcore-triton")]
    assert not [line for line in ours if "skipped" in line]
    ops = {line["op"] for line in ours if line["kind"] == "time"}
    assert ops == {"clip", "siglip", "nt_xent", "sup_con", "project", "l2_normalize"}
    for line in lines:
        assert line.keys() >= ALWAYS
        if "skipped" in line:
            continue
        if line["kind"] in ("time", "ceiling"):
            assert math.isfinite(line["time_ms_p50"])
        if line["kind"] == "accuracy":
            assert {"error_value", "error_grad_x", "eager_error_value"} <= line.keys()
    skipped = {line["provider"] for line in lines if "skipped" in line}
    assert skipped >= {"torch-compile", "siglip_kernel", "liger_kernel", "inf_cl"}
    check = (
        "import sys; sys.path.insert(0, 'benchmarks'); from pathlib import Path; import results; "
        f"lines = results.load_lines([Path({str(results)!r})]); "
        "print(len(results.latest_rows(lines, 'time', 'clip')), "
        "len(results.latest_rows(lines, 'time', 'clip', 'interpreter')) > 0)"
    )
    assert run(sys.executable, "-c", check).stdout.split() == ["0", "True"]  # the pages' tables


@without_gpu
def test_without_a_gpu_it_says_so_in_one_line() -> None:
    done = run(sys.executable, "benchmarks/gpu.py")
    assert (done.returncode, done.stdout, done.stderr) == (1, "", NO_GPU + "\n")


@without_gpu
@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_passes_it_on() -> None:
    done = run("make", "bench-gpu", f"PYTHON={sys.executable}")
    assert done.returncode != 0
    assert NO_GPU in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def test_its_steps_have_titles_to_choose_by() -> None:
    done = run(sys.executable, "benchmarks/gpu.py", "--list")
    assert done.returncode == 0, done.stderr
    titles = done.stdout.splitlines()
    assert len(titles) == len(set(titles)) > 20
    assert titles[0].startswith("time clip rows 32,768 width 512")


def test_its_list_may_be_cut_short() -> None:
    """Catches a BrokenPipeError behind `| head -3`."""
    reading, writing = os.pipe()
    os.close(reading)
    command = [sys.executable, "benchmarks/gpu.py", "--list"]
    options = {"cwd": REPOSITORY, "stdout": writing, "stderr": subprocess.PIPE, "text": True}
    done = subprocess.run(command, check=False, **options)
    os.close(writing)
    assert done.stderr == ""


def test_the_commit_is_that_of_the_environment_where_git_has_none(tmp_path: Path) -> None:
    code = (
        "import sys; sys.path.insert(0, 'benchmarks'); import machine; from pathlib import Path; "
        f"machine.REPOSITORY = Path({str(tmp_path)!r}); print(machine.git_commit())"
    )
    assert run(sys.executable, "-c", code).stdout.strip() == "0123abc"
