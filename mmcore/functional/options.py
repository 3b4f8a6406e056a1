"""Checks of options: numbers, flags and choices.

A number comes back as Python's own: NumPy's scalars, and arrays of no dimension, are numbers too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch


def as_number(name: str, value: object, expected: str = "a number") -> float:
    """`value`, a number of Python, of NumPy or of a traced shape."""
    if isinstance(value, np.ndarray) and value.ndim == 0:  # a scalar too, under torch.compile
        value = value.item()
    if isinstance(value, (torch.SymInt, torch.SymFloat)):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, (int, float, Real)):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return value if type(value) is int or type(value) is float else float(value)


def as_integer(name: str, value: object, expected: str = "an integer") -> int:
    """`value`, an integer of Python, of NumPy or of a traced shape."""
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, torch.SymInt):
        return value  # type: ignore[return-value]
    if isinstance(value, bool) or not isinstance(value, (int, Integral)):
        raise TypeError(f"{name} must be {expected}, got {type(value).__name__}")
    return int(value)


def check_positive(name: str, value: object) -> float:
    """`value`, a finite number above 0."""
    number = as_number(name, value)
    if not 0 < number < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {number}")
    return number


def check_not_negative(name: str, value: object) -> float:
    """`value`, a finite number, 0 or above."""
    number = as_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {number}")
    return number


def check_fraction(name: str, value: object) -> float:
    """`value`, a number in [0, 1)."""
    number = as_number(name, value)
    if not 0 <= number < 1:
        raise ValueError(f"{name} must be in [0, 1), got {number}")
    return number


def check_count(name: str, value: object, most: int) -> int:
    """`value`, an integer from 1 to `most`."""
    count = as_integer(name, value)
    if not 1 <= count <= most:
        raise ValueError(f"{name} must be from 1 to {most}, got {count}")
    return count


def check_flag(name: str, value: object) -> bool:
    """`value`, True or False."""
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")
    return bool(value)


def as_sequence(name: str, value: object) -> list[Any]:
    """`value`, a sequence of numbers or an array of one dimension, which are not looked at."""
    if not isinstance(value, (Sequence, np.ndarray)) or isinstance(value, str):
        raise TypeError(f"{name} must be a sequence of numbers, got {type(value).__name__}")
    if isinstance(value, np.ndarray) and value.ndim != 1:
        raise ValueError(f"{name} must have 1 dimension, got {value.ndim}")
    return list(value)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {names}, got {value!r}")
