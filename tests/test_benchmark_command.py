"""The command line of the benchmarks, and what its results say of mmcore."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import mmcore

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def evaluated(expression: str, module: str, *arguments: str) -> Any:
    """What an expression gives after `import module`, where benchmarks/ is the script's folder."""
    code = f"import json, sys; import {module}; print(json.dumps({expression}))"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env=os.environ | {"PYTHONPATH": str(BENCHMARKS)},
        cwd=BENCHMARKS.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize(
    ("arguments", "rows", "repeats"),
    [
        ([], 8192, None),
        (["--quick"], 512, 3),
        (["--quick", "--rows", "64", "--repeats", "2"], 64, 2),
    ],
)
def test_quick_does_not_override_what_is_said(
    arguments: list[str], rows: int, repeats: int | None
) -> None:
    """Catches --quick measuring other sizes than those on the command line."""
    chosen = "[vars(run.parse_arguments())[name] for name in ('rows', 'repeats')]"
    assert evaluated(chosen, "run", *arguments) == [[rows], repeats]


def test_results_name_the_version_of_mmcore() -> None:
    """Catches a lookup by the name of the package, which is not that of the distribution."""
    assert evaluated("machine.versions()", "machine")["mmcore"] == mmcore.__version__
