"""Gradient caching beside torch.compile, torch.export and checkpoints, and the memory it takes."""

from __future__ import annotations

import gc
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from caching_cases import CHUNK, EXACT, gradients, rows, tower
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import mmcore
from mmcore import functional


def step(module: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A loss with code before and after the cached tower."""
    y = rows(3)[:, :5]
    return lambda x: functional.clip_loss(mmcore.cached(module, 2 * x, CHUNK).sin(), y, 3.0)


def test_a_compiled_step() -> None:
    """Catches a tower that torch.compile traces into, an error of it, and a compilation a step."""
    torch.compiler.reset()
    counters = torch._dynamo.utils.counters
    plain, module = tower(), tower()
    functional.clip_loss(plain(2 * rows()).sin(), rows(3)[:, :5], 3.0).backward()
    compiled = torch.compile(step(module), backend="eager")
    counts = []
    for _ in range(3):
        module.zero_grad()
        compiled(rows()).backward()
        counts.append(counters["stats"]["unique_graphs"])
    assert counts[0] == counts[-1]
    for found, expected in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


def test_without_gradients_there_is_one_graph() -> None:
    """Catches a break of the graph where nothing is cached."""
    torch.compiler.reset()
    module = tower()
    with torch.no_grad():
        compiled = torch.compile(step(module), backend="eager", fullgraph=True)
        assert torch.equal(compiled(rows()), step(module)(rows()))
    exported = torch.export.export(mmcore.nn.Cached(module, CHUNK), (rows(),))
    assert torch.equal(exported.module()(rows()), module(rows()))


def test_importing_does_not_import_the_compiler() -> None:
    """Catches a decorator that loads torch._dynamo, as long again as torch."""
    code = """
import sys, torch, mmcore
mmcore.cached(torch.nn.Linear(2, 2), torch.zeros(4, 2), 2).sum().backward()
assert "torch._dynamo" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_tower_with_checkpoints(reentrant: bool) -> None:
    """Catches random states that a checkpoint inside of the replay restores for itself alone."""
    plain, module, x = tower(dropout=0.3), tower(dropout=0.3), rows().requires_grad_()
    torch.manual_seed(4)
    torch.cat([plain(chunk) for chunk in x.tensor_split(3)]).square().sum().backward()
    torch.manual_seed(4)
    again = mmcore.cached(lambda x: checkpoint(module, x, use_reentrant=reentrant), x, CHUNK)
    again.square().sum().backward()
    for found, expected in zip(gradients(module), gradients(plain), strict=True):
        torch.testing.assert_close(found, expected, **EXACT)


class Saved:
    """Counts the bytes that autograd keeps, by the hooks of what it saves."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def pack(self, tensor: Tensor) -> Tensor:
        copied = tensor.detach().clone()
        size = copied.nbytes
        self.now += size
        self.most = max(self.most, self.now)
        weakref.finalize(copied, self.release, size)
        return copied

    def release(self, size: int) -> None:
        self.now -= size


def most_saved(call: Callable[[], Tensor]) -> int:
    saved = Saved()
    with torch.autograd.graph.saved_tensors_hooks(saved.pack, lambda tensor: tensor):
        call().backward()
    gc.collect()
    return saved.most


def test_one_chunk_has_a_graph_at_a_time() -> None:
    """Catches graphs of several chunks that are alive together, and a forward that records one."""
    layers = [layer for _ in range(9) for layer in (nn.Linear(6, 6), nn.GELU())]
    module, x = nn.Sequential(*layers), rows(count=64, dtype=torch.float32)
    plain = most_saved(lambda: module(x).sum())
    inputs = x.nbytes
    weights = sum(2 * p.nbytes for p in module.parameters())
    cached = most_saved(lambda: mmcore.cached(module, x, rows=4).sum())
    assert cached <= inputs + weights + plain / 16
    assert cached < plain / 4


def test_nothing_is_left_after_a_step() -> None:
    """Catches a cycle that keeps inputs or outputs alive until the garbage collector comes."""
    gc.collect()
    gc.disable()
    try:
        x = rows()
        found = mmcore.cached(tower(), x, CHUNK)
        found.sum().backward()
        alive = [weakref.ref(each) for each in (x, found, found.grad_fn)]
        del x, found
        assert [each() for each in alive] == [None] * 3
    finally:
        gc.enable()


@pytest.mark.full
def test_peak_memory_of_a_large_batch() -> None:
    """Catches temporaries of the whole batch: a process of its own measures its peak."""
    script = Path(__file__).with_name("caching_memory.py")

    def peak(how: str) -> int:
        command = [sys.executable, script, how, "4096"]
        return int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)

    assert peak("cached") < peak("plain") / 8
