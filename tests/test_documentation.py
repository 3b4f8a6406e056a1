"""Every public name is documented, and every example runs."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcore
from mmcore import functional, metrics, nn


def public() -> Iterator[tuple[str, Any]]:
    yield "mmcore.backend", mmcore.backend
    yield "mmcore.workspace", mmcore.workspace
    yield "mmcore.FallbackWarning", mmcore.FallbackWarning
    for module in (functional, metrics, nn):
        for name in module.__all__:
            yield f"{module.__name__}.{name}", getattr(module, name)


PUBLIC = dict(public())


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring(name: str) -> None:
    documentation = PUBLIC[name].__doc__
    assert documentation
    if not issubclass(type(PUBLIC[name]), type) or not issubclass(PUBLIC[name], Warning):
        assert "Example:" in documentation, f"{name} has no example"
    if name.startswith("mmcore.functional.") and name[18:].islower():
        for part in ("Equivalent", "Args:", "Returns:", "Raises:", "Memory:"):
            assert part in documentation, f"{name} says nothing under {part!r}"


@pytest.mark.parametrize("name", PUBLIC)
def test_example_runs(name: str) -> None:
    target = PUBLIC[name]
    target = getattr(target, "__wrapped__", target)
    tests = doctest.DocTestFinder(recurse=False).find(target, name, globs={})
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS)
    for test in tests:
        runner.run(test)
    assert runner.failures == 0


def test_the_objective_of_ones_own_runs() -> None:
    page = (Path(__file__).parent.parent / "docs/objectives.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(compile(code, "docs/objectives.md", "exec"), {})


def test_every_objective_is_on_its_page() -> None:
    page = (Path(__file__).parent.parent / "docs/objectives.md").read_text()
    losses = [name for name in functional.__all__ if name.endswith("_loss")]
    assert not [name for name in losses if f"| `{name}` |" not in page]
