"""``python -m mmcore``: the report for people and for programs, and how it ends."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

import mmcore
from mmcore import report
from mmcore.backends import cpu
from mmcore.ops import FAMILIES

NO_COMPILED_MODULE = "import sys; sys.modules['mmcore._C'] = None; "
AS_A_COMMAND = "import runpy; runpy.run_module('mmcore', run_name='__main__')"


def run(*arguments: str, **options: Any) -> subprocess.CompletedProcess[str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("MMCORE_")}
    command = [sys.executable, "-m", "mmcore", *arguments]
    options = {"stdout": subprocess.PIPE, "env": kept} | options
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False, **options)


def test_the_version_is_the_packages() -> None:
    """Catches a command without --version, or with another version than the package's."""
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"mmcore {mmcore.__version__}\n", "")


def test_json_says_what_the_report_says() -> None:
    """Catches a report for programs that is no JSON, or lacks what people are told."""
    found = json.loads(run("--json").stdout)
    assert found["mmcore"] == mmcore.__version__
    assert found["torch"] == torch.__version__
    assert found["cpu"]["available"] == (cpu.missing_module is None)
    assert set(found["variables"]) == set(report.VARIABLES)
    assert list(found["op_families"]) == list(FAMILIES)
    assert found["op_families"]["softmax_similarity"] == {"cpu": "own", "triton": "own"}
    lines = report.text(found).splitlines()
    assert lines[0] == f"mmcore: {mmcore.__version__}"
    assert [line for line in lines if line.split() == ["softmax_similarity", "own", "own"]]


def test_help_names_everything() -> None:
    """Catches an option or a command that --help leaves out."""
    done = run("--help")
    assert done.returncode == 0
    for name in ("--version", "--json", "tune"):
        assert name in done.stdout
    assert "--rows" in run("tune", "--help").stdout


def test_json_of_what_has_no_report_is_refused() -> None:
    """Catches an option that is silently ignored."""
    done = run("--json", "tune")
    assert done.returncode == 2
    assert "--json is for the report" in done.stderr


@pytest.mark.parametrize(
    ("argument", "unbuffered"), [(None, "1"), (None, ""), ("--json", "1"), ("--version", "")]
)
def test_a_reader_that_has_gone_is_no_traceback(argument: str | None, unbuffered: str) -> None:
    """Catches a BrokenPipeError behind `| head -3`, when a line is written or at the very end."""
    reading, writing = os.pipe()
    os.close(reading)
    try:
        environment = os.environ | {"PYTHONUNBUFFERED": unbuffered}
        done = run(*([argument] if argument else []), stdout=writing, env=environment)
    finally:
        os.close(writing)
    assert done.stderr == ""


def test_a_missing_compiled_module_says_how_to_get_it() -> None:
    """Catches an installation of the reference alone that leaves the user without a remedy."""
    command = [sys.executable, "-c", NO_COMPILED_MODULE + AS_A_COMMAND]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    (line,) = [line for line in done.stdout.splitlines() if line.startswith("backend cpu:")]
    assert "the compiled module mmcore._C is missing" in line
    assert "the reference" in line
    assert "install a C++20 compiler" in line


def test_a_compiled_module_that_does_not_load_is_told_from_a_missing_one() -> None:
    """Catches advice to build where the module is built and a library of it is missing."""
    found = {"available": False, "is_built": True, "obstacle": "libgomp.so.1: cannot open"}
    state = report._cpu_state(found)
    assert "libgomp.so.1" in state
    assert "install a C++20 compiler" not in state
