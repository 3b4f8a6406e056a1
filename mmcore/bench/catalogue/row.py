"""A row of the catalogue: all that tests and benchmarks must know of one objective.

The plain formula has the signature of the public function, so that one set of arguments serves the
function, its module, the formula and the peers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmcore.bench.catalogue.draw import Draw

Arguments = dict[str, Any]
Loss = Callable[..., Any]
# A library's loss as a function of the same arguments by name; it imports the library when called.
Peer = Callable[[], Loss]
# Names an argument, or one tensor of an argument that has several: ("features", "image").
Path = tuple[Any, ...]


def nothing(draw: Draw) -> Arguments:
    """No further arguments."""
    return {}


def any_order(width: int, options: Mapping[str, Any]) -> Tensor:
    """Columns may change places as they like."""
    return torch.randperm(width)


@dataclass(frozen=True)
class Variant:
    """One way to call an objective: options, and tensors beside or in place of the usual ones.

    `options` are what the objective's module takes when it is made; where they depend on the width
    of the features they are a function of it. `axes` are the settings by which variants of one
    objective differ, where there are several: the tests cover pairs of them. `title` is the name in
    the table of benchmarks, for `rows` of each side. `products` counts multiplications of 2·N²·D
    over forward and backward, `columns` says how many the matrix has for each row. Memory is
    measured of variants with a title and of those that are `is_large`; `frozen` arguments have no
    gradient where time or memory is measured. `peers` compute the same; `small_peers` need too much
    memory to be timed.
    """

    name: str = ""
    options: Mapping[str, Any] | Callable[[int], Mapping[str, Any]] = field(default_factory=dict)
    inputs: Callable[[Draw], Arguments] = nothing
    axes: Mapping[str, str | float | None] = field(default_factory=dict)
    title: str = ""
    products: float | None = None
    columns: int = 1
    is_large: bool = False
    frozen: tuple[str, ...] = ()
    peers: Mapping[str, Peer] = field(default_factory=dict)
    small_peers: Mapping[str, Peer] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """An objective: the public function, its module, its formula, and the variants of its call.

    `inputs` makes the arguments of every variant; `constants` among them never have gradients.
    `products` is as `Variant` has it; `gram_products` counts multiplications of 2·N·D² in its
    place. `kernels` says what runs on a backend: kernels of the objective's "own" op, those of ops
    that are "shared" with others, or "none", plain PyTorch everywhere. Tests draw `rows` rows of
    every one of `kinds` at each of `scales`; `order` gives an order of the columns, by their number
    and the options, that leaves the value as it is.
    """

    function: Loss
    module: type[nn.Module]
    plain: Loss
    inputs: Callable[[Draw], Arguments]
    variants: tuple[Variant, ...]
    products: float = 4
    gram_products: float | None = None
    constants: tuple[str, ...] = ()
    kernels: Literal["own", "shared", "none"] = "shared"
    rows: int = 60
    kinds: tuple[str, ...] = ("random", "duplicates", "near")
    scales: tuple[float, ...] = (1.0, 14.0, 100.0)
    order: Callable[[int, Mapping[str, Any]], Tensor] = any_order

    @property
    def name(self) -> str:
        """The public function's."""
        return str(self.function.__name__)

    def cases(self) -> list[Case]:
        """The row with each of its variants."""
        return [Case(self, variant) for variant in self.variants]


@dataclass(frozen=True)
class Case:
    """An objective, called in one way."""

    row: Row
    variant: Variant

    @property
    def id(self) -> str:
        """For example ``clip_loss, label smoothing``."""
        return ", ".join(filter(None, (self.row.name, self.variant.name)))

    @property
    def axes(self) -> Mapping[str, str | float | None]:
        """The settings that tell this variant from the objective's others."""
        return self.variant.axes or {"variant": self.variant.name}

    @property
    def is_large(self) -> bool:
        """Whether its memory is measured."""
        return self.variant.is_large or bool(self.variant.title)

    def options(self, width: int) -> dict[str, Any]:
        """What the module takes when it is made, for features of this width."""
        options = self.variant.options
        return dict(options(width) if callable(options) else options)

    def arguments(self, draw: Draw) -> Arguments:
        """The arguments of a call by name, without the options."""
        return self.row.inputs(draw) | self.variant.inputs(draw)

    def function(self, width: int) -> Loss:
        """The public function with this variant's options."""
        return _with(self.row.function, self.options(width))

    def plain(self, width: int) -> Loss:
        """The plain formula with this variant's options."""
        return _with(self.row.plain, self.options(width))

    def flops(self, rows: int, width: int) -> float:
        """Multiplications and additions of a forward and a backward that store no matrix."""
        if self.row.gram_products is not None:
            return self.row.gram_products * 2 * rows * width**2
        chosen = self.variant.products
        return (self.row.products if chosen is None else chosen) * 2 * rows**2 * width

    def leaves(self, arguments: Arguments, frozen: tuple[str, ...] = ()) -> dict[Path, Tensor]:
        """The tensors that have a gradient."""
        fixed = {*self.row.constants, *frozen}
        return {
            path: value
            for path, value in _tensors(arguments)
            if path[0] not in fixed and value.is_floating_point()
        }


def _with(function: Loss, options: Mapping[str, Any]) -> Loss:
    return lambda **arguments: function(**arguments, **options)


def _tensors(arguments: Arguments) -> list[tuple[Path, Tensor]]:
    found: list[tuple[Path, Tensor]] = []
    for name, value in arguments.items():
        if isinstance(value, Tensor):
            found.append(((name,), value))
        elif isinstance(value, Mapping):
            found += [((name, key), each) for key, each in value.items()]
        elif isinstance(value, list):
            found += [((name, i), each) for i, each in enumerate(value)]
    return [(path, value) for path, value in found if isinstance(value, Tensor)]


def filled(arguments: Arguments, leaves: Mapping[Path, Tensor]) -> Arguments:
    """The arguments with other tensors in the places of these."""
    result = {
        name: value.copy() if isinstance(value, (dict, list)) else value
        for name, value in arguments.items()
    }
    for path, tensor in leaves.items():
        if len(path) == 1:
            result[path[0]] = tensor
        else:
            result[path[0]][path[1]] = tensor
    return result
