"""The error for a temperature that is given in place of its inverse, the scale."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any, ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


def scale_not_temperature(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, which refuses an argument `temperature` and says what to give instead."""
    parameters = signature(function).parameters

    @wraps(function)
    def call(*arguments: Parameters.args, **by_name: Parameters.kwargs) -> Result:
        for name in by_name:
            if name.endswith("temperature"):
                of_it = name.removesuffix("temperature") + "scale"
                scale = of_it if of_it in parameters else scale_of(function)
                raise TypeError(f"{function.__name__}() takes no {name}: give {scale} = 1 / {name}")
        return function(*arguments, **by_name)

    return call


def scale_of(function: Callable[..., Any]) -> str | None:
    """The name of the function's inverse temperature; None where it has none."""
    return next((name for name in signature(function).parameters if name.endswith("scale")), None)
