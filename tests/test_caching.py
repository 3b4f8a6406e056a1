"""Gradient caching: values and gradients of towers without it, in one process."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from caching_cases import CHUNK, EXACT, ROWS, gradients, rows, tower
from torch import Tensor, nn

import mmcore
from mmcore import functional


def in_chunks(module: Callable[..., Tensor], x: Tensor) -> Tensor:
    """The plain tower, with the chunks that caching makes: the same random numbers."""
    return torch.cat([module(chunk) for chunk in x.tensor_split(-(-len(x) // CHUNK))])


def by_cached(towers: list[nn.Module], inputs: list[Tensor], size: int, loss: Any) -> None:
    loss(*(mmcore.cached(t, x, rows=size) for t, x in zip(towers, inputs, strict=True))).backward()


def by_caching(towers: list[nn.Module], inputs: list[Tensor], size: int, loss: Any) -> None:
    with mmcore.caching(rows=size) as cache:
        cache.backward(loss(*(cache(t, x) for t, x in zip(towers, inputs, strict=True))))


def by_module(towers: list[nn.Module], inputs: list[Tensor], size: int, loss: Any) -> None:
    modules = [mmcore.nn.Cached(each, rows=size) for each in towers]
    loss(*(module(x) for module, x in zip(modules, inputs, strict=True))).backward()


every_way = pytest.mark.parametrize("way", [by_cached, by_caching, by_module])


@every_way
@pytest.mark.parametrize("size", [1, CHUNK, ROWS, 64])
@pytest.mark.parametrize("wants_inputs", [False, True])
def test_cached_equals_plain(way: Any, size: int, wants_inputs: bool) -> None:
    """Catches rows that are lost or counted twice, and a gradient of parameters, scale or inputs
    that misses a chunk.
    """
    results = []
    for step in (way, None):
        towers, scale = [tower(1), tower(2)], torch.tensor(5.0, requires_grad=True)
        inputs = [rows(seed).requires_grad_(wants_inputs) for seed in (3, 4)]
        values = []

        def loss(x: Tensor, y: Tensor, scale: Tensor = scale, values: Any = values) -> Tensor:
            values.append(functional.clip_loss(x, y, scale))
            return values[0]

        if step is None:
            loss(*(module(x) for module, x in zip(towers, inputs, strict=True))).backward()
        else:
            step(towers, inputs, size, loss)
        found = [*gradients(towers[0]), *gradients(towers[1]), scale.grad, values[0].detach()]
        results.append([*found, *((x.grad for x in inputs) if wants_inputs else ())])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


@every_way
def test_dropout_is_drawn_again(way: Any) -> None:
    """Catches a replay with other masks (sentence-transformers #3862), and a generator that the
    backward leaves elsewhere: what is drawn next is what it would have been.
    """
    plain, x, y = tower(dropout=0.3), rows(), rows(3)[:, :5]
    module = copy.deepcopy(plain)

    def loss(x: Tensor) -> Tensor:
        return functional.clip_loss(x, y, 3.0 + torch.rand(()))

    torch.manual_seed(9)
    loss(in_chunks(plain, x)).backward()
    expected = torch.rand(1)
    torch.manual_seed(9)
    way([module], [x], CHUNK, loss)
    assert torch.equal(torch.rand(1), expected)
    for found, gradient in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, gradient, **EXACT)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backward_inside", [False, True])
@every_way
def test_autocast_is_entered_again(way: Any, dtype: torch.dtype, backward_inside: bool) -> None:
    """Catches a replay in float32 (PyLate #242, GradCache #17), and casts of weights that were kept
    without a gradient: all bits are those of the same chunks, one after another.
    """
    plain, x = tower(dtype=torch.float32), rows(dtype=torch.float32)
    module, seen = copy.deepcopy(plain), []
    upstream = torch.randn(ROWS, 5).to(dtype)

    def loss(x: Tensor) -> Tensor:
        seen.append(x.detach())
        return (x * upstream).sum()

    pieces = zip(x.tensor_split(3), upstream.tensor_split(3), strict=True)
    for chunk, gradient in pieces:
        with torch.autocast("cpu", dtype):
            output = plain(chunk)
        output.backward(gradient)
        seen.append(output.detach())
    with torch.autocast("cpu", dtype):
        if backward_inside or way is not by_cached:
            way([module], [x], CHUNK, loss)
        else:
            found = loss(mmcore.cached(module, x, CHUNK))
    if not backward_inside and way is by_cached:
        found.backward()
    assert seen[-1].dtype == dtype
    assert torch.equal(seen[-1], torch.cat(seen[:-1]))
    for one, other in zip(gradients(module), gradients(plain), strict=True):
        assert torch.equal(one, other)


def test_a_plain_call_after_a_cached_one_under_autocast() -> None:
    """Catches casts of weights in autocast's cache that have no gradient."""
    module, x = tower(dtype=torch.float32), rows(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        mmcore.cached(module, x, CHUNK)
        assert module(x).requires_grad
        module(x).sum().backward()
    assert all(gradient is not None for gradient in gradients(module))


def test_a_scaled_loss() -> None:
    """Catches gradients that the scaler does not scale."""
    plain, x, y = tower(dtype=torch.float32), rows(dtype=torch.float32), torch.randn(ROWS, 5)
    module = copy.deepcopy(plain)
    functional.clip_loss(plain(x), y, 3.0).backward()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.0)
    with mmcore.caching(CHUNK) as cache:
        cache.backward(scaler.scale(functional.clip_loss(cache(module, x), y, 3.0)))
    scaler.unscale_(optimizer)
    for found, expected in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected)


def test_mmcores_backend_is_the_same_again() -> None:
    """Catches a replay outside of the block that chose the backend: the bits differ."""
    upstream, x = torch.randn(64, 5), torch.randn(64, 33)
    heads = [mmcore.nn.ProjectionHead(33, 5) for _ in range(2)]
    heads[1].load_state_dict(heads[0].state_dict())
    with mmcore.backend("reference"):
        heads[0](x).backward(upstream)
        found = mmcore.cached(heads[1], x, rows=64)
    found.backward(upstream)
    assert all(map(torch.equal, gradients(heads[1]), gradients(heads[0])))


def test_a_frozen_tower_gives_input_gradients() -> None:
    """Catches a frozen tower that ends the graph of what is before it, or gets gradients itself."""
    module, before = tower().requires_grad_(False), tower(3)
    before = nn.Sequential(*before, nn.Linear(5, 6, dtype=torch.float64))
    results = []
    for call in (module, lambda x: mmcore.cached(module, x, CHUNK)):
        before.zero_grad()
        call(before(rows())).square().sum().backward()
        results.append([p.grad.clone() for p in before.parameters()])
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, **EXACT)
    assert gradients(module) == [None] * 4


def test_one_tower_for_several_inputs() -> None:
    """Catches a second call that takes the place of the first."""
    plain, module = tower(), tower()
    functional.nt_xent_loss(plain(rows(1)), plain(rows(2)), 3.0).backward()
    views = [mmcore.cached(module, rows(seed), CHUNK) for seed in (1, 2)]
    functional.nt_xent_loss(*views, 3.0).backward()
    for found, expected in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_a_gradient_without_memory_of_its_own() -> None:
    """Catches an expanded gradient, of stride 0, that is read as a dense one (pytorch #120386)."""
    plain, module = tower(), tower()
    plain(rows()).sum().backward()
    mmcore.cached(module, rows(), CHUNK).sum().backward()
    for found, expected in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_the_tower_itself(mode: Any) -> None:
    """Catches chunks, or refusals, where no gradient is wanted."""
    module, sizes = nn.Sequential(tower(), nn.BatchNorm1d(5, dtype=torch.float64)), []
    module.register_forward_pre_hook(lambda _, given: sizes.append(len(given[0])))
    with mode():
        found = mmcore.cached(module, rows(), CHUNK)
        with mmcore.caching(CHUNK) as cache:
            assert torch.equal(cache(module, rows()), found)
    assert sizes == [ROWS, ROWS]
