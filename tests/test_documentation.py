"""Every public name is documented, and every example runs."""

from __future__ import annotations

import doctest
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import mmcore
from mmcore import analysis, functional, metrics, nn, retrieval, translation


def public() -> Iterator[tuple[str, Any]]:
    yield "mmcore.backend", mmcore.backend
    yield "mmcore.workspace", mmcore.workspace
    yield "mmcore.cached", mmcore.cached
    yield "mmcore.caching", mmcore.caching
    yield "mmcore.FallbackWarning", mmcore.FallbackWarning
    for module in (analysis, functional, metrics, nn, retrieval, translation):
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


DOCS = Path(__file__).parent.parent / "docs"
FAMILIES = sorted((DOCS / "objectives").glob("*.md"))
LOSSES = [name for name in functional.__all__ if name.endswith("_loss")]


def test_every_objective_is_on_the_page_of_all() -> None:
    page = (DOCS / "objectives.md").read_text()
    assert not [name for name in LOSSES if f"| `{name}` |" not in page]
    assert not [path.name for path in FAMILIES if f"](objectives/{path.name})" not in page]


def test_every_objective_has_a_section_on_the_page_of_its_family() -> None:
    headings = re.findall(r"^## .*$", "".join(path.read_text() for path in FAMILIES), re.MULTILINE)
    assert not [name for name in LOSSES if not any(f"`{name}`" in line for line in headings)]
