"""The benchmark of retrieval runs, and its lines say what was compared."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


@pytest.mark.full  # a process for each peak
def test_small_cases_are_measured(tmp_path: Path) -> None:
    """Catches a provider that fails or is left out, and lines without ratios or memory."""
    results = tmp_path / "retrieval.jsonl"
    command = [sys.executable, "benchmarks/retrieval.py", "--quick", "--results", str(results)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, results.read_text().splitlines()))
    assert {line["kind"] for line in lines} == {"retrieval"}
    assert {line["op"] for line in lines} == {"topk"}
    ours = [line for line in lines if line["provider"].startswith("mmcore")]
    assert len(ours) == 2 * 3
    assert all(line["times_of_torch-eager"] > 0 and line["peak_mib"] is not None for line in ours)
