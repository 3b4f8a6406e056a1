"""Functions that torch.compile does not trace: it calls them once, and their result is constant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_compiled(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`, without importing torch._dynamo.

    torch's own decorator imports torch._dynamo and with it sympy: as long again as torch itself,
    which every process would wait for, whether it compiles anything or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
