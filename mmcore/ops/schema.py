"""Schemas of ops from the named tuples of a contract."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_type_hints

import torch
from torch import Tensor

TYPES = {
    Tensor: "Tensor",
    Tensor | None: "Tensor?",
    Sequence[Tensor]: "Tensor[]",
    Sequence[int]: "int[]",
    Sequence[bool]: "bool[]",
    bool: "bool",
    float: "float",
    int: "SymInt",
    str: "str",
    torch.dtype: "ScalarType",
}
TENSORS = ("Tensor", "Tensor?", "Tensor[]")


def fields(tuple_type: type[tuple[object, ...]]) -> dict[str, str]:
    """{name: type in a schema} of a NamedTuple's fields."""
    return {name: TYPES[hint] for name, hint in get_type_hints(tuple_type).items()}


def schema(inputs: dict[str, str], outputs: dict[str, str]) -> str:
    """``(Tensor x, float eps) -> (Tensor y)``."""
    left, right = (
        ", ".join(f"{kind} {name}" for name, kind in each.items()) for each in (inputs, outputs)
    )
    return f"({left}) -> ({right})"
