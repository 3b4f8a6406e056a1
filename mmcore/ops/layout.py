"""Where the values of a family are once its lists of tensors are expanded.

`torch.autograd.Function` ignores tensors inside lists, so it is given them one by one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from mmcore.ops.schema import TENSORS


def flat(values: Any) -> list[Any]:
    """The values with their lists expanded; a tensor stands for itself."""
    found: list[Any] = []
    for value in (values,) if isinstance(values, Tensor) else values:
        found += value if isinstance(value, list | tuple) else [value]
    return found


def nested(values: Sequence[Any], sizes: Sequence[int | None]) -> list[Any]:
    """Undoes `flat`; `sizes` has the length of every list, and None for what is no list."""
    rest = iter(values)
    return [next(rest) if size is None else [next(rest) for _ in range(size)] for size in sizes]


def sizes_of(types: Mapping[str, str], count: int) -> list[int | None]:
    """For `nested`: `count` tensors in each list of tensors."""
    return [count if kind == "Tensor[]" else None for kind in types.values()]


class Layout:
    """Flat positions of a family's inputs and results; `count` is the length of its lists."""

    def __init__(
        self, inputs: Mapping[str, str], results: Mapping[str, str], *, wanted: Sequence[str],
        upstream: Sequence[str], count: int,
    ) -> None:  # fmt: skip
        self.input_sizes, self.result_sizes = sizes_of(inputs, count), sizes_of(results, count)
        at, size = _positions(self.input_sizes, inputs)
        self.inputs, self.input_count = at, size
        self.tensors = [i for name, kind in inputs.items() if kind in TENSORS for i in at[name]]
        self.settings = [
            i for name, kind in inputs.items() if kind not in TENSORS for i in at[name]
        ]
        self.wanted = [i for name in wanted for i in at[name]]
        at, self.result_count = _positions(self.result_sizes, results)
        self.results = at
        self.upstream = [i for name in upstream for i in at[name]]
        self.non_differentiable = [i for name in results if name not in upstream for i in at[name]]


def _positions(
    sizes: Sequence[int | None], names: Mapping[str, str]
) -> tuple[dict[str, list[int]], int]:
    """{name: positions of its values}, and how many there are."""
    found, begin = {}, 0
    for name, size in zip(names, sizes, strict=True):
        end = begin + (1 if size is None else size)
        found[name] = list(range(begin, end))
        begin = end
    return found, begin
