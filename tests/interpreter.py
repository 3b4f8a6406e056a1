"""Triton's interpreter, corrected: bfloat16 as a GPU rounds it, and the language patched once.

The interpreter cuts digits off, an error twice as large and always towards zero, which no budget
for rounded numbers can hold. And it patches the whole language again whenever a kernel calls a
function, which takes much of its time, although the launch has done so already.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter

_convert_others = interpreter._convert_float
_call_and_patch = interpreter.InterpretedFunction.__call__
_called: set[interpreter.InterpretedFunction[Any]] = set()


def to_bfloat16(numbers: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The upper halves of float32 numbers, rounded; NaN stays NaN."""
    bits = np.ascontiguousarray(numbers, dtype=np.float32).view(np.uint32)
    rounded = (bits + np.uint32(0x7FFF) + ((bits >> 16) & 1)) >> 16
    return np.where(np.isnan(numbers), np.uint32(0x7FC0), rounded).astype(np.uint16)


def to_float32(halves: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """The float32 numbers whose upper halves these are."""
    return (np.ascontiguousarray(halves).view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def convert_float(
    numbers: np.ndarray[Any, Any], of: Any, to: Any, rounding_mode: Any
) -> np.ndarray[Any, Any]:
    """What the interpreter calls for every conversion between floating-point numbers."""
    if of == tl.float32 and to == tl.bfloat16:
        return to_bfloat16(numbers)
    if of == tl.bfloat16 and to == tl.float32:
        return to_float32(numbers)
    return _convert_others(numbers, of, to, rounding_mode)


def call(function: interpreter.InterpretedFunction[Any], *arguments: Any, **settings: Any) -> Any:
    """What a kernel's calls of other functions come to.

    The first call of each patches what its module sees beside the launch's `tl`, for good: the
    interpreter never takes it back.
    """
    if function not in _called:
        _called.add(function)
        return _call_and_patch(function, *arguments, **settings)
    return function.rewrite()(*arguments, **settings)


def install() -> None:
    """From now on in this process."""
    interpreter._convert_float = convert_float
    interpreter.InterpretedFunction.__call__ = call
