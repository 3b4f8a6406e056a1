"""Checks of shapes, dtypes and devices, made once, before any kernel runs.

Every message names the argument, what was expected and what came. Checks of values (is a target in
range?) live inside the ops, where torch.compile cannot trace them away.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from mmcore.functional.stand_ins import check_is_tensor


def check_tensor(name: str, value: object) -> None:
    """`value` is a tensor of real floating-point numbers."""
    check_is_tensor(name, value)
    assert isinstance(value, Tensor)
    if not value.dtype.is_floating_point:
        raise TypeError(f"{name} must be of a floating-point dtype, got {_short(value.dtype)}")


def check_matrix(name: str, value: object) -> None:
    """`value` is a two-dimensional tensor with at least one column."""
    check_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.ndim != 2:
        raise ValueError(f"{name} must have 2 dimensions, got {value.ndim}")
    if value.shape[1] == 0:
        raise ValueError(f"{name} must have at least 1 column, got shape {tuple(value.shape)}")


def check_rows(name: str, value: Tensor) -> None:
    """`value` has at least one row."""
    if value.shape[0] == 0:
        raise ValueError(f"{name} must have at least 1 row, got shape {tuple(value.shape)}")


def check_matches(name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    """`value` has the dtype and the device of `x`."""
    if value.dtype != x.dtype:
        raise TypeError(
            f"{name} must have dtype {_short(x.dtype)} to match {x_name}, got {_short(value.dtype)}"
        )
    check_device(name, value, x, x_name)


def check_device(name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    """`value` is on the device of `x`."""
    if value.device != x.device:
        raise ValueError(
            f"{name} must be on device {x.device} to match {x_name}, got {value.device}"
        )


def check_columns(name: str, value: Tensor, columns: int, x_name: str = "x") -> None:
    """`value` has as many columns as `x`."""
    if value.shape[1] != columns:
        raise ValueError(
            f"{name} must have {columns} columns to match {x_name}, got {value.shape[1]}"
        )


def check_same_rows(name: str, value: Tensor, x: Tensor, x_name: str = "x") -> None:
    """`value` has as many rows as `x`."""
    if value.shape[0] != x.shape[0]:
        raise ValueError(
            f"{name} must have {x.shape[0]} rows to match {x_name}, got {value.shape[0]}"
        )


def check_features(x: Tensor, y: Tensor, x_name: str = "x", y_name: str = "y") -> None:
    """Two matrices whose rows can be compared: same columns, dtype and device, none empty."""
    for name, value in ((x_name, x), (y_name, y)):
        check_matrix(name, value)
        check_rows(name, value)
    check_columns(y_name, y, x.shape[1], x_name)
    check_matches(y_name, y, x, x_name)


def check_pairs(x: Tensor, y: Tensor, x_name: str = "x", y_name: str = "y") -> None:
    """Two matrices whose rows belong together: same rows, dtype and device, widths of their own."""
    for name, value in ((x_name, x), (y_name, y)):
        check_matrix(name, value)
        check_rows(name, value)
    check_matches(y_name, y, x, x_name)
    check_same_rows(y_name, y, x, x_name)


def check_several_rows(name: str, value: Tensor) -> None:
    """`value` has at least two rows, without which nothing varies."""
    if value.shape[0] < 2:
        raise ValueError(f"{name} must have at least 2 rows, got {value.shape[0]}")


def check_modalities(features: Mapping[str, Tensor]) -> None:
    """At least two matrices by name, of the same columns, dtype and device."""
    if not isinstance(features, Mapping):
        raise TypeError(f"features must be a mapping of names, got {type(features).__name__}")
    if len(features) < 2:
        raise ValueError(f"features must have at least 2 modalities, got {len(features)}")
    first, *others = (f"features[{name!r}]" for name in features)
    x, *rest = features.values()
    check_matrix(first, x)
    for name, value in zip(others, rest, strict=True):
        check_matrix(name, value)
        check_columns(name, value, x.shape[1], first)
        check_matches(name, value, x, first)


def check_equal_rows(features: Mapping[str, Tensor]) -> None:
    """Every modality has as many rows as the others."""
    rows = {name: value.shape[0] for name, value in features.items()}
    first = next(iter(rows.values()))
    # torch.compile would compile anew for every number in a set.
    if any(count != first for count in rows.values()):
        raise ValueError(f"features must have as many rows in every modality, got {rows}")


def check_modality(argument: str, name: str, features: Mapping[str, Tensor]) -> None:
    """`name` is one of the modalities."""
    if name not in features:
        names = ", ".join(repr(known) for known in features)
        raise ValueError(f"{argument} must name modalities of features ({names}), got {name!r}")


def check_parameter(name: str, value: Tensor | None, size: int, x: Tensor) -> None:
    """An optional vector of `size` numbers on the device of `x`, in its dtype or in float32."""
    if value is None:
        return
    check_tensor(name, value)
    if value.shape != (size,):
        raise ValueError(f"{name} must have shape ({size},), got {tuple(value.shape)}")
    if value.dtype not in (x.dtype, torch.float32):
        raise TypeError(
            f"{name} must have dtype {_short(x.dtype)} to match x, or float32, "
            f"got {_short(value.dtype)}"
        )
    check_device(name, value, x)


def check_positive(name: str, value: float) -> None:
    """`value` is a finite number above 0."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 < value < math.inf:
        raise ValueError(f"{name} must be finite and above 0, got {value}")


def check_weight(name: str, weight: Tensor | None, x: Tensor) -> None:
    """One number for each row of `x`, none below 0 and not all 0.

    On a GPU, or under torch.compile, the host does not see the numbers: weights that are all 0
    give NaN there.
    """
    check_parameter(name, weight, x.shape[0], x)
    if weight is None or weight.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if not bool((weight >= 0).all()):
        raise ValueError(f"{name} must be at least 0, got {weight.min().item()}")
    if not bool((weight > 0).any()):
        raise ValueError(f"{name} must be above 0 for at least one row, got 0 for all")


def check_fraction(name: str, value: float) -> None:
    """`value` is a number in [0, 1)."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < 1:
        raise ValueError(f"{name} must be in [0, 1), got {value}")


def check_not_negative(name: str, value: float) -> None:
    """`value` is a finite number, 0 or above."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} must be finite and at least 0, got {value}")


def check_count(name: str, value: int, most: int) -> None:
    """`value` is an integer from 1 to `most`."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}")
    if not 1 <= value <= most:
        raise ValueError(f"{name} must be from 1 to {most}, got {value}")


def check_flag(name: str, value: bool) -> None:
    """`value` is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {type(value).__name__}")


def as_scalar(name: str, value: float | Tensor, x: Tensor) -> Tensor:
    """`value`, a finite number or a one-element tensor, as a 0-D tensor on the device of `x`."""
    if isinstance(value, Tensor):
        check_tensor(name, value)
        if value.numel() != 1:
            raise ValueError(f"{name} must be a scalar, got shape {tuple(value.shape)}")
        check_device(name, value, x)
        return value if value.ndim == 0 else value.reshape(())
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError(f"{name} must be a number or a tensor, got {type(value).__name__}")
    if not -math.inf < value < math.inf:  # torch.compile cannot trace math.isfinite
        raise ValueError(f"{name} must be finite, got {value}")
    return torch.full((), value, dtype=torch.float64, device=x.device)


def check_scale(name: str, value: float | Tensor) -> None:
    """`value`, an inverse temperature, is not below 0.

    On a GPU, or under torch.compile, the host does not see a tensor's number: one below 0 turns
    positives and negatives around there.
    """
    if isinstance(value, Tensor):
        is_seen = value.device.type == "cpu" and not torch.compiler.is_compiling()
        if not is_seen or value.numel() != 1:
            return
        value = value.item()
    if isinstance(value, (int, float)) and value < 0:
        raise ValueError(f"{name}, the inverse temperature, must be at least 0, got {value}")


def check_indices(name: str, value: object, size: int, of: str, x: Tensor) -> None:
    """`value` is an int64 vector with one number for each row of `of`, on the device of `x`."""
    check_is_tensor(name, value)
    assert isinstance(value, Tensor)
    if value.dtype != torch.int64:
        raise TypeError(f"{name} must have dtype int64, got {_short(value.dtype)}")
    if value.shape != (size,):
        raise ValueError(
            f"{name} must have shape ({size},) to match the rows of {of}, got {tuple(value.shape)}"
        )
    check_device(name, value, x)


def check_choice(name: str, value: str, choices: tuple[str, ...]) -> None:
    """`value` is one of `choices`."""
    if value not in choices:
        names = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {names}, got {value!r}")


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
