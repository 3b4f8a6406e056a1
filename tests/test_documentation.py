"""Every public name is documented, and every example runs."""

from __future__ import annotations

import doctest
from collections.abc import Iterator
from typing import Any

import pytest

import mmcore
from mmcore import functional, nn


def public() -> Iterator[tuple[str, Any]]:
    yield "mmcore.backend", mmcore.backend
    yield "mmcore.workspace", mmcore.workspace
    yield "mmcore.FallbackWarning", mmcore.FallbackWarning
    for module in (functional, nn):
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
