"""The benchmark of the host's time runs on a machine without a GPU, and writes what it promises."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent
OURS = {"mmcore-triton", "mmcore-triton-launcher"}


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
@pytest.mark.skipif(shutil.which(os.environ.get("CC", "cc")) is None, reason="no C compiler")
def test_a_step_runs_without_a_gpu(tmp_path: Path) -> None:
    """Catches a call of libcuda that the stub lacks, and a benchmark of nothing or of one tree."""
    results = tmp_path / "host.jsonl"
    command = ["benchmarks/host.py", "--only", "l2_normalize", "--rounds", "1"]
    done = subprocess.run(
        [sys.executable, *command, "--results", str(results)],
        cwd=REPOSITORY, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = {line["provider"]: line for line in map(json.loads, results.read_text().splitlines())}
    assert lines.keys() >= OURS | {"torch-eager"}
    for line in lines.values():
        assert (line["kind"], line["op"], line["threads"]) == ("host", "l2_normalize", 1)
        assert 0 < line["host_us_min"] <= line["host_us_p10"]
    if "skipped" in done.stdout:
        return  # a copy without git's history
    assert len(lines) == 4
    assert all(lines[name]["ratio_p10"] > 0 for name in OURS)
    assert "(≤ 0.4)" in done.stdout.splitlines()[-1]
