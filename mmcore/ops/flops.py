"""FLOPs of the ops, as `torch.utils.flop_counter.FlopCounterMode` reports them.

Two for each multiplication and addition of a matrix product in the plain formula, and as many for
each gradient that the product sends to an operand: what eager PyTorch is reported to compute.
Nothing else counts, as nothing else does there, nor what a backward computes a second time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import NamedTuple

import torch

COUNTER = "torch.utils.flop_counter"
Formula = Callable[..., int]
_formulas: dict[str, Formula] = {}


class Product(NamedTuple):
    """A matrix product of the plain formula."""

    size: int  # multiplications
    left: bool  # whether the gradient of its left operand is wanted
    right: bool


def forward_flops(products: Iterable[Product]) -> int:
    return sum(2 * product.size for product in products)


def backward_flops(products: Iterable[Product]) -> int:
    return sum(2 * product.size * (product.left + product.right) for product in products)


def no_flops(*arguments: object, **named: object) -> int:
    """Of an op without a matrix product."""
    return 0


def count_by(name: str, formula: Formula) -> None:
    """FlopCounterMode takes `formula` for ``mmcore::<name>``: of the arguments of a call."""
    _formulas[name] = formula
    if COUNTER in sys.modules:
        _register(name, formula)


def _register(name: str, formula: Formula) -> None:
    packet = getattr(torch.ops.mmcore, name)
    sys.modules[COUNTER].register_flop_formula(packet, get_raw=True)(formula)


class _WhenImported(MetaPathFinder):
    """Hands the formulas over when the counter is imported: to import it here would take longer
    than mmcore itself, because it imports Triton.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        spec = PathFinder.find_spec(fullname, path, target) if fullname == COUNTER else None
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            for name, formula in _formulas.items():
                _register(name, formula)

        spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _WhenImported())
