"""The benchmark of several processes: what it counts, what it predicts, what its lines say."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parent.parent


def benchmark(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "benchmarks/distribution.py", *arguments]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


def test_counts_are_those_of_the_formulas() -> None:
    """Catches a collective, or bytes, that an exchange has gained or lost; and a prediction that
    does not say that it is one.
    """
    done = benchmark("--part", "counted", "predicted", "--ranks", "8")
    assert done.returncode == 0, done.stdout + done.stderr
    counts, predictions = done.stdout.split("PREDICTED, not measured")
    assert counts.count("\nclip, ") == counts.count("\nsiglip, ") == 3
    assert counts.count("\nsiglip kept, ") == 3
    assert counts.count("\nnt_xent, ") == 1
    assert "by the formulas" not in counts
    shares = [float(cell) for row in predictions.splitlines()[-10:] for cell in row.split()[-2:]]
    assert len(shares) == 20
    assert all(0 < share < 1 for share in shares)


@pytest.mark.full
def test_processes_are_measured(tmp_path: Path) -> None:
    """Catches a provider that fails or is left out, and lines without ratios."""
    results = tmp_path / "distribution.jsonl"
    sizes = ("--rows", "32", "--rounds", "1", "--results", str(results))
    done = benchmark("--part", "measured", *sizes)
    assert done.returncode == 0, done.stderr
    lines = list(map(json.loads, results.read_text().splitlines()))
    assert {line["kind"] for line in lines} == {"distribution"}
    has_theirs = find_spec("sentence_transformers") is not None
    ops = ["clip"] * 4 + ["cached"] * 2 + ["ranking"] * (4 if has_theirs else 2)
    assert [line["op"] for line in lines] == ops
    assert has_theirs != ("sentence-transformers is not installed" in done.stdout)
    assert all(line["time_ms_p50"] > 0 for line in lines)
    sizes = [line["shape"]["ranks"] for line in lines]
    assert set(sizes[:6]) == {2}
    assert set(sizes[6:]) == {1, 2}
    beside = [line for line in lines if "beside" in line]
    assert len(beside) == (6 if has_theirs else 4)
    assert all(line["ratio_time"] > 0 and line["ratio_processor"] > 0 for line in beside)
