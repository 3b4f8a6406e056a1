"""How torch runs the code: what it compiles, and what it will compute a second time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import wraps
from typing import Any, NoReturn, TypeVar

import torch

Function = TypeVar("Function", bound=Callable[..., Any])


def constant_when_compiled(function: Function) -> Function:
    """As `torch.compiler.assume_constant_result`, without importing torch._dynamo.

    torch's own decorator imports torch._dynamo and with it sympy: as long again as torch itself,
    which every process would wait for, whether it compiles anything or not.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


def not_compiled(function: Function) -> Function:
    """As `torch.compiler.disable`, without importing torch._dynamo (`constant_when_compiled`).

    torch.compile breaks its graph at the call. What the function calls is not compiled either,
    unless it was compiled before, as a tower may be.
    """

    @wraps(function)
    def wrapper(*arguments: Any, **by_name: Any) -> Any:
        if "torch._dynamo" not in sys.modules:  # then nothing compiles
            return function(*arguments, **by_name)
        return torch.compiler.disable(function)(*arguments, **by_name)

    wrapper._torchdynamo_disable = True  # type: ignore[attr-defined]
    return wrapper  # type: ignore[return-value]


def refuse_script(*module: object) -> NoReturn:
    """What ``torch.jit.script`` calls first, where a module or a function has it."""
    raise NotImplementedError(
        "torch.jit.script cannot compile mmcore: record the call with torch.jit.trace, or export "
        "the model with torch.export.export"
    )


def is_recomputed_by_checkpoint() -> bool:
    """Whether this forward, or the recomputation of it, is inside of torch.utils.checkpoint.

    With ``use_reentrant=True`` the forward records no graph, and the answer is no.
    """
    if torch.compiler.is_compiling():
        return False  # the choice between saving and computing again is the compiler's
    hooks = torch._C._autograd._top_saved_tensors_default_hooks(False)
    return hooks is not None and hooks[0].__module__ == "torch.utils.checkpoint"
