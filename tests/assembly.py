"""The process that compiles kernels ahead of time, asked for one kernel after another.

A process of its own, because the tests' has Triton interpreted. It compiles what a test asks for
and nothing else, once in a run; Triton's cache keeps the results for later runs, by version and by
the source of the kernel, in build/triton.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
CACHE = HERE.parent / "build" / "triton"


Figures = Callable[..., dict[str, Any]]


@contextmanager
def compiler(script: str, **variables: str) -> Iterator[Figures]:
    """A function that asks `script` for a report: registers, spills, instructions of a kernel."""
    left_out = ("TRITON_INTERPRET", "MMCORE_TEST_DEVICE")
    environment = {key: value for key, value in os.environ.items() if key not in left_out}
    process = subprocess.Popen(
        [sys.executable, HERE / script],
        env=environment | {"TRITON_CACHE_DIR": str(CACHE)} | variables,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    requests, answers = process.stdin, process.stdout
    assert requests is not None
    assert answers is not None

    @cache
    def figures(*request: str | int) -> dict[str, Any]:
        requests.write(json.dumps(request) + "\n")
        requests.flush()
        answer = answers.readline()
        assert answer, f"{request}: the process that compiles has ended"
        found: dict[str, Any] = json.loads(answer)
        assert "error" not in found, f"{request}: {found['error']}"
        return found

    try:
        yield figures
    finally:
        requests.close()
        process.wait()


def serve(reports: dict[str, Figures]) -> None:
    """The loop of a script: the name of a report and its arguments in, its figures out."""
    for line in sys.stdin:
        name, *arguments = json.loads(line)
        try:
            answer = reports[name](*arguments)
        except Exception as error:  # for the test that asked
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)
