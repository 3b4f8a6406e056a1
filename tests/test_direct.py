"""Ops that run without torch's dispatcher: whoever watches or replaces ops still sees them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from mmcore import functional
from mmcore.ops import direct

FORWARD = "mmcore.l2_normalize.default"
BOTH = [FORWARD, "mmcore.l2_normalize_backward.default"]


class Dispatched(TorchDispatchMode):
    """Records the ops of mmcore that torch dispatches."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.names += [str(function)] if str(function).startswith("mmcore") else []
        return function(*arguments, **(options or {}))


class Called(TorchFunctionMode):
    """Records the ops of mmcore that Python calls."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_function__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        self.names += [str(function)] if str(function).startswith("mmcore") else []
        return function(*arguments, **(options or {}))


class Subclass(Tensor):
    """A tensor that torch asks about every function."""


def step(x: Tensor) -> None:
    functional.l2_normalize(x).sum().backward()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(4, 8, requires_grad=True)


def test_a_dispatch_mode_sees_forward_and_backward(x: Tensor) -> None:
    """Catches FLOP counters, tracers and selective checkpoints that miss ops."""
    with Dispatched() as mode:
        step(x)
    assert mode.names == BOTH


def test_a_function_mode_sees_the_forward(x: Tensor) -> None:
    """Catches a mode of functions that misses ops."""
    with Called() as mode:
        step(x)
    assert FORWARD in mode.names


def test_the_profiler_names_the_ops(x: Tensor) -> None:
    """Catches a profile in which the time of an op belongs to nothing."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        step(x)
    names = {event.name for event in profile.events()}
    assert {"mmcore::l2_normalize", "mmcore::l2_normalize_backward"} <= names


def plain(x: Tensor) -> list[Tensor]:
    return [x, x.detach(), x.T, torch.nn.Parameter(x.detach()), x.detach().bfloat16()]


def others(x: Tensor) -> list[Tensor]:
    z = torch.view_as_complex(torch.randn(4, 8, 2))
    negative = z.conj().imag
    assert negative.is_neg()
    rows = torch.nested.nested_tensor([torch.randn(2, 8), torch.randn(3, 8)])
    return [x.to("meta"), x.detach().to_sparse(), x.detach().as_subclass(Subclass), negative, rows]


def test_which_tensors_are_plain(x: Tensor) -> None:
    """Catches memory that a kernel would misread, and calls that became slow for nothing."""
    assert all(direct._are_plain([each, None, 1, 0.5, "cpu", [True]]) for each in plain(x))
    assert not any(direct._are_plain([x, each]) for each in others(x))
    assert not direct._are_plain([x, [x, x.to("meta")]])
    with torch.inference_mode():
        assert direct._are_plain([torch.ones(2)])


def test_a_pending_minus_sign_is_seen(backend: str) -> None:
    """Catches a kernel that reads numbers whose sign torch has not yet turned."""
    x = torch.view_as_complex(torch.randn(4, 8, 2)).conj().imag
    torch.testing.assert_close(functional.l2_normalize(x), F.normalize(x, dim=-1))


def test_an_integer_for_a_number_is_a_number(backend: str) -> None:
    """Catches an integer that reaches a kernel, which the dispatcher would have converted."""
    x = torch.randn(4, 8, requires_grad=True)
    y = functional.l2_normalize(x, eps=1)
    z = functional.project(x, torch.randn(3, 8), norm="layer", norm_eps=1, eps=1)
    (y.sum() + z.sum()).backward()
    torch.testing.assert_close(y, F.normalize(x, dim=-1, eps=1))


def test_nothing_watched_takes_the_short_way(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Catches a condition that always holds, so that every call waits for the dispatcher."""
    seen: list[bool] = []
    is_watched = direct._is_watched

    def record() -> bool:
        seen.append(is_watched())
        return seen[-1]

    monkeypatch.setattr(direct, "_is_watched", record)
    step(x)
    assert seen == [False, False]
