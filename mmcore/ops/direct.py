"""Calls of ops without torch's dispatcher, where it has nothing to decide.

The dispatcher converts every argument twice, which takes longer the more arguments an op has. It is
needed wherever anything may watch or replace the op: modes that trace or count, `torch.func`,
`torch.jit.trace`, the profiler, and tensors that are not plain memory of a CPU or a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_KEYS = (
    "CPU", "CUDA", "AutogradCPU", "AutogradCUDA", "AutocastCPU", "AutocastCUDA", "ADInplaceOrView",
)  # fmt: skip
_NOT_PLAIN = -1
for _name in _KEYS:
    _key = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, _name))
    # What is left has a pending minus sign, or is nested, sparse or without memory.
    _NOT_PLAIN &= ~_key.raw_repr()
_NO_TENSORS = {type(None), str, bool, int, float, torch.dtype}
_keys_of = torch._C._dispatch_keys


def direct(op: torch._ops.OpOverload, run: Callable[..., Any]) -> Callable[..., Any]:
    """The op; where nothing sees the difference, `run`, which computes its results."""
    kinds = [str(argument.type) for argument in op._schema.arguments]
    floats = [i for i, kind in enumerate(kinds) if kind == "float"]

    def call(*arguments: Any) -> Any:
        if torch.compiler.is_compiling() or _is_watched() or not _are_plain(arguments):
            return op(*arguments)
        for i in floats:
            if type(arguments[i]) is not float:  # the dispatcher makes one of an integer
                return op(*arguments)
        return run(*arguments)

    call.__name__ = call.__qualname__ = str(op)
    return call


def _is_watched() -> bool:
    return bool(
        torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._is_tracing()
        or torch.autograd._profiler_enabled()  # type: ignore[attr-defined]
    )


def _are_plain(values: Sequence[Any]) -> bool:
    for value in values:
        kind = type(value)
        if kind in _NO_TENSORS:
            continue
        if kind is Tensor or kind is Parameter:
            if _keys_of(value).raw_repr() & _NOT_PLAIN:
                return False
        elif kind is not list or not _are_plain(value):
            return False
    return True
