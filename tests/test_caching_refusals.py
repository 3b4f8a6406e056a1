"""Gradient caching: towers and calls that it refuses, with the reason, and what it survives."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caching_cases import CHUNK, EXACT, ROWS, gradients, rows, tower
from torch import Tensor, nn

import mmcore


def with_norm(norm: nn.Module) -> nn.Module:
    return nn.Sequential(tower(), nn.Sequential(norm.double()))


NORMS: dict[str, Callable[[], nn.Module]] = {
    "training": lambda: nn.BatchNorm1d(5),
    "without statistics": lambda: nn.BatchNorm1d(5, track_running_stats=False).eval(),
    "of all processes": lambda: nn.SyncBatchNorm(5),
    "frozen": lambda: nn.BatchNorm1d(5).requires_grad_(False),
}


@pytest.mark.parametrize("kind", NORMS)
def test_batch_normalisation_is_refused(kind: str) -> None:
    """Catches a loss of chunks' means that is not that of the batch, and statistics of two passes;
    the refused call changes nothing.
    """
    module = with_norm(NORMS[kind]())
    before = copy.deepcopy(module.state_dict())
    with pytest.raises(ValueError, match=r"'1\.0', a .*BatchNorm.*mean and variance.*LayerNorm"):
        mmcore.cached(module, rows(), CHUNK)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_batch_normalisation_with_running_statistics_is_not_refused() -> None:
    """Catches a refusal by type alone, for a frozen encoder in .eval()."""
    module = with_norm(nn.BatchNorm1d(5)).eval()
    torch.testing.assert_close(mmcore.cached(module, rows(), CHUNK), module(rows()), **EXACT)


class Average(nn.Module):
    """Keeps a moving average of what it sees, in place or as a new tensor."""

    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.register_buffer("mean", torch.zeros(6, dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        mean = 0.9 * self.mean + 0.1 * x.detach().mean(0)
        if self.in_place:
            self.mean.copy_(mean)
        else:
            self.mean = mean
        return x - self.mean


def average(in_place: bool) -> nn.Module:
    return nn.Sequential(Average(in_place), tower())


def spectral() -> nn.Module:
    module = tower()
    nn.utils.parametrizations.spectral_norm(module[0])
    return module


STATEFUL: dict[str, tuple[Callable[[], nn.Module], str]] = {
    "in place": (lambda: average(True), r"0\.mean"),
    "replaced": (lambda: average(False), r"0\.mean"),
    "spectral norm": (spectral, r"0\.parametrizations\.weight\.0\._u"),
}


@pytest.mark.parametrize("size", [CHUNK, ROWS])
@pytest.mark.parametrize("kind", STATEFUL)
def test_buffers_that_change_are_refused(kind: str, size: int) -> None:
    """Catches a second forward that sees another state; with one chunk the backward notices."""
    build, name = STATEFUL[kind]
    with pytest.raises(RuntimeError, match=f"changes its buffer '{name}' in its forward"):
        mmcore.cached(build(), rows(), size).sum().backward()


class Positions(nn.Module):
    """Fills a buffer in its first forward, and does not change it again."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.zeros(6, dtype=torch.float64))
        self.is_filled = False

    def forward(self, x: Tensor) -> Tensor:
        if not self.is_filled:
            self.table += torch.arange(6)
            self.is_filled = True
        return x + self.table


def test_a_buffer_that_is_filled_once_is_not_refused() -> None:
    """Catches a refusal of tables that are computed when they are needed first."""
    module = nn.Sequential(Positions(), tower())
    mmcore.cached(module, rows(), CHUNK).sum().backward()
    assert gradients(module)[0] is not None


def test_changes_between_forward_and_backward() -> None:
    """Catches gradients at other weights than those of the loss, or without its dropout."""
    module = tower(dropout=0.3)
    loss = mmcore.cached(module, rows(), CHUNK).sum()
    with torch.no_grad():
        module[3].weight.add_(1)
    with pytest.raises(RuntimeError, match=r"parameter '3\.weight' was changed in place"):
        loss.backward()
    loss = mmcore.cached(module, rows(), CHUNK).sum()
    module.eval()
    with pytest.raises(RuntimeError, match=r"switched by \.eval\(\) after its forward"):
        loss.backward()
    x = rows()
    loss = mmcore.cached(module, x, CHUNK).sum()
    x.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_inputs_that_the_tower_changes() -> None:
    """Catches a second forward that adds to its inputs once more."""
    with pytest.raises(RuntimeError, match="changes its inputs in place"):
        mmcore.cached(lambda x: tower()(x.add_(1)), rows(), CHUNK)


@pytest.mark.filterwarnings("ignore:Using backward")
def test_second_derivatives_are_refused() -> None:
    """Catches a gradient penalty that is silently a constant."""
    with pytest.raises(NotImplementedError, match="differentiated a second time"):
        mmcore.cached(tower(), rows(), CHUNK).square().sum().backward(create_graph=True)


@pytest.mark.parametrize("collects", [False, True])
def test_a_second_backward(collects: bool) -> None:
    """Catches gradients that a second backward does not add, and a graph that outlives its end."""
    module = tower(dropout=0.3)
    with mmcore.caching(CHUNK) as cache:
        loss = cache(module, rows()).square().sum()
        step: Any = cache.backward if collects else torch.autograd.backward
        step(loss, retain_graph=True)
        once = [gradient.clone() for gradient in gradients(module)]
        step(loss)
        for found, expected in zip(gradients(module), once, strict=True):
            torch.testing.assert_close(found, 2 * expected, **EXACT)
        with pytest.raises(RuntimeError, match="backward through the graph a second time"):
            step(loss)


def test_a_gradient_of_the_inputs_alone() -> None:
    """Catches torch.autograd.grad that adds to the gradients of parameters."""
    module, x = tower(), rows().requires_grad_()
    (expected,) = torch.autograd.grad(module(x).square().sum(), x)
    (found,) = torch.autograd.grad(mmcore.cached(module, x, CHUNK).square().sum(), x)
    torch.testing.assert_close(found, expected, **EXACT)
    mmcore.cached(module, x, CHUNK).square().sum().backward(inputs=[x])
    torch.testing.assert_close(x.grad, expected, **EXACT)
    assert gradients(module) == [None] * 4


class Fails(nn.Module):
    """Raises in one of its calls."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.left = call

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise ArithmeticError("in the middle")
        return x


def step(module: nn.Module, cache: Any, collects: bool, drawn: list[Tensor]) -> None:
    """Appends the state of the generator between forward and backward."""
    loss = cache(module, rows()).sum()
    drawn.append(torch.get_rng_state())
    cache.backward(loss) if collects else loss.backward()


@pytest.mark.parametrize("call", [2, 5])
@pytest.mark.parametrize("collects", [False, True])
def test_an_error_in_the_middle(call: int, collects: bool) -> None:
    """Catches random states, autocast, backend or calls that an error leaves behind."""
    module = nn.Sequential(tower(), Fails(call))
    module[0][1].p = 0.3
    torch.manual_seed(4)
    with mmcore.caching(CHUNK) as cache:
        drawn: list[Tensor] = []
        with pytest.raises(ArithmeticError):
            step(module, cache, collects, drawn)
        assert all(torch.equal(torch.get_rng_state(), state) for state in drawn)
        module.zero_grad()
        plain = copy.deepcopy(module)
        torch.manual_seed(4)
        torch.cat([plain(chunk) for chunk in rows().tensor_split(3)]).sum().backward()
        torch.manual_seed(4)
        cache.backward(cache(module, rows()).sum())
    for found, expected in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


BAD_CALLS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no rows": (lambda: mmcore.cached(tower(), rows(), 0), ValueError, "rows must be from 1"),
    "a flag": (lambda: mmcore.cached(tower(), rows(), True), TypeError, "rows must be an integer"),
    "module": (lambda: mmcore.nn.Cached(len), TypeError, "tower must be a module, got builtin"),
    "callable": (lambda: mmcore.cached(3, rows()), TypeError, "tower must be a module or a func"),
    "block": (lambda: mmcore.caching(0).__enter__(), ValueError, "rows must be from 1"),
    "no tensor": (
        lambda: mmcore.cached(tower(), (3, torch.tensor(1.0))),
        ValueError,
        "inputs must have at least one tensor with rows.* got 1 tensors of no dimension",
    ),
    "sizes": (
        lambda: mmcore.cached(tower(), (rows(), {"mask": rows(count=1)})),
        ValueError,
        r"inputs\[1\]\['mask'\] must have as many rows as inputs\[0\], 10, got 1: .*partial",
    ),
    "mean": (
        lambda: mmcore.cached(lambda x: tower()(x).mean(), rows(), CHUNK),
        ValueError,
        r"the tower's output must have a row for each row of its inputs, 4 .* shape \(\)",
    ),
    "scale": (
        lambda: mmcore.cached(lambda x: (tower()(x), {"scale": torch.ones(1)}), rows(), CHUNK),
        ValueError,
        r"output\[1\]\['scale'\] must have a row .* such as a learned scale",
    ),
    "object": (
        lambda: mmcore.cached(lambda x: (x, object()), rows(), CHUNK),
        TypeError,
        r"the tower's output\[1\] must be a tensor, .* got object",
    ),
    "structure": (
        lambda: mmcore.cached(lambda x: (x, len(x)), rows(), CHUNK),
        ValueError,
        r"the same structure for every chunk, got \(tensor, 4\) and then \(tensor, 3\)",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name: str) -> None:
    """Catches an error from deep inside, which does not name the argument."""
    call, error, message = BAD_CALLS[name]
    with pytest.raises(error, match=message):
        call()


def test_a_call_after_the_block() -> None:
    """Catches a cache that works on, with nobody to call its backward."""
    with mmcore.caching() as cache:
        pass
    with pytest.raises(RuntimeError, match="cache was called after its block"):
        cache(tower(), rows())


def test_a_cached_module_is_copied_and_saved() -> None:
    """Catches a module that pickle cannot name, or weights by another name."""
    module = mmcore.nn.Cached(tower(), CHUNK)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(rows()), module(rows()))
    assert list(module.state_dict()) == [f"tower.{name}" for name in tower().state_dict()]
    assert "rows=4" in repr(module)
