"""Gradient caching: towers of many kinds, arguments and results of many kinds."""

from __future__ import annotations

from collections import UserDict
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from caching_cases import CHUNK, EXACT, ROWS, gradients, rows, tower
from torch import Tensor, nn

import mmcore


class Many(nn.Module):
    """A tower with arguments and results of many kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = tower()

    def forward(
        self, tokens: Tensor, more: dict[str, Any], *, factor: Tensor, name: str = ""
    ) -> dict[str, Any]:
        x = self.layer(tokens * more["mask"]) * factor
        length = more["mask"].sum(1).long()
        return {"features": x, "others": (x.square(), None, name), "length": length}


def many(seed: int = 5) -> dict[str, Any]:
    more = {"mask": (rows(seed) > 0).double(), "nothing": None}
    factor = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    return {"tokens": rows().requires_grad_(), "more": more, "factor": factor, "name": "a"}


def check_many(call: Callable[[Many, dict[str, Any]], Any]) -> None:
    results = []
    for function in (call, lambda module, arguments: module(**arguments)):
        module, arguments = Many(), many()
        found = function(module, arguments)
        assert found["others"][1:] == (None, "a")
        assert not found["length"].is_floating_point()
        (found["features"].sum() + (found["others"][0] * 2).sum()).backward()
        leaves = (arguments["tokens"].grad, arguments["factor"].grad)
        results.append([found["length"], found["others"][0].detach(), *gradients(module), *leaves])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, **EXACT)


def test_arguments_by_name() -> None:
    """Catches a nested tensor that is not cut, a number that is, and outputs out of order."""
    check_many(lambda module, arguments: mmcore.cached(module, arguments, CHUNK))
    check_many(lambda module, arguments: mmcore.cached(module, UserDict(arguments), CHUNK))
    check_many(lambda module, arguments: mmcore.nn.Cached(module, CHUNK)(**arguments))


def test_arguments_by_position() -> None:
    """Catches a tuple that is taken for one argument."""

    def call(module: Many, given: dict[str, Any]) -> Any:
        by_name = partial(module, factor=given["factor"], name="a")
        return mmcore.cached(by_name, (given["tokens"], given["more"]), ROWS)

    check_many(call)


def test_a_list_is_one_argument() -> None:
    """Catches a list that is taken for several arguments."""
    x = mmcore.cached(lambda pair: pair[0] + pair[1], [rows(1), rows(2)], CHUNK)
    assert torch.equal(x, rows(1) + rows(2))


class Encoder(nn.Module):
    """A model whose towers are methods."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = tower()

    def encode(self, x: Tensor) -> Tensor:
        return self.layer(x)


class Wraps:
    """A callable that is no module."""

    def __init__(self, module: nn.Module) -> None:
        self.inner = [module]

    def __call__(self, x: Tensor) -> Tensor:
        return self.inner[0](x)


def encoded(model: Encoder, x: Tensor) -> Tensor:
    return model.encode(x)


class Trainer:
    """An object that is no module, with a tower as a method."""

    def __init__(self, module: nn.Module) -> None:
        self.towers = {"image": module}

    def encode(self, x: Tensor) -> Tensor:
        return self.towers["image"](x)


CALLABLES: dict[str, Callable[[Encoder], Any]] = {
    "method": lambda model: model.encode,
    "function": lambda model: lambda x: model.encode(x),
    "partial": lambda model: partial(lambda model, x: model.encode(x), model),
    "object": lambda model: Wraps(model.layer),
    "helper": lambda model: lambda x: encoded(model, x),
    "trainer": lambda model: Trainer(model.layer).encode,
    "compiled": lambda model: torch.compile(model.layer, backend="eager"),
}


@pytest.mark.parametrize("kind", CALLABLES)
def test_towers_that_are_no_modules(kind: str) -> None:
    """Catches a tower whose parameters are not found, so that they get no gradient, and frozen ones
    that get one.
    """
    torch.compiler.reset()
    plain, model, x = Encoder(), Encoder(), rows()
    plain.encode(x).square().sum().backward()
    mmcore.cached(CALLABLES[kind](model), x, CHUNK).square().sum().backward()
    for found, expected in zip(gradients(model), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    model.requires_grad_(False)
    model.zero_grad()
    found = mmcore.cached(CALLABLES[kind](model), x, CHUNK)
    if found.requires_grad:  # a function may read what only its call shows
        found.sum().backward()
    assert found.requires_grad == (kind not in ("method", "compiled"))
    assert gradients(model) == [None] * 4
