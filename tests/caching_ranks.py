"""Towers under DDP and FSDP2, the gradients that they must have, and counts of their exchanges."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

from mmcore import functional

PROCESSES, SECONDS, WIDTH, ROWS = 2, 60, 6, 4


def tower(seed: int = 1) -> nn.Sequential:
    """The same weights in every process. The buffers of batch normalisation are never changed."""
    torch.manual_seed(seed)
    layers = (nn.Linear(WIDTH, 9), nn.GELU(), nn.Linear(9, WIDTH), nn.BatchNorm1d(WIDTH).eval())
    return nn.Sequential(*layers).double()


def inputs(rows: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Rows of this process for two towers."""
    torch.manual_seed(10 + dist.get_rank())
    x, y = torch.randn(2, rows[dist.get_rank()], WIDTH, dtype=torch.float64)
    return x, y


def loss_of(x: Tensor, y: Tensor) -> Tensor:
    """Every row depends on every other one of this process; 0 of no rows."""
    logits = functional.l2_normalize(x) @ functional.l2_normalize(y).T * 5
    return logits.logsumexp(1).sum() - logits.diagonal().sum()


def gradients(*modules: nn.Module) -> list[Tensor]:
    """Of all parameters, whole; an error where one has none."""
    parameters = [parameter for module in modules for parameter in module.parameters()]
    found = [parameter.grad for parameter in parameters]
    assert all(gradient is not None for gradient in found)
    return [g.full_tensor() if isinstance(g, DTensor) else g for g in found if g is not None]


def averaged(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    """What DDP's mean is, by hand."""
    loss.backward()
    found = gradients(*modules)
    for gradient in found:
        dist.all_reduce(gradient)
        gradient /= PROCESSES
    return found


def error(found: list[Tensor], expected: list[Tensor]) -> float:
    """The largest difference."""
    pairs = zip(found, expected, strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


class Counted:
    """A tower under DDP that counts how often it exchanges gradients."""

    def __init__(self, module: nn.Module, **options: Any) -> None:
        self.ddp, self.count = DistributedDataParallel(module, **options), 0
        self.ddp.register_comm_hook(None, self.hook)

    # DDP compares annotations with types, and these would be strings.
    def hook(self, _, bucket):
        self.count += 1
        done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return done.then(lambda future: future.value()[0] / PROCESSES)


def sharded(module: nn.Sequential) -> nn.Sequential:
    """Under FSDP2: its linear layers by themselves, and the rest."""
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    for layer in (module[0], module[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


def wholly_sharded(module: nn.Module) -> nn.Module:
    return fully_shard(module, mesh=dist.init_device_mesh("cpu", (PROCESSES,)))


@contextmanager
def counted_reductions() -> Iterator[list[int]]:
    """How often FSDP2 exchanged gradients in the block: one number, in a list."""
    counts, name = [0], "reduce_scatter_single"
    name = name if hasattr(dist, name) else "reduce_scatter_tensor"  # before torch 2.13
    original = getattr(dist, name)

    def counting(*arguments: Any, **options: Any) -> Any:
        counts[0] += 1
        return original(*arguments, **options)

    setattr(dist, name, counting)
    try:
        yield counts
    finally:
        setattr(dist, name, original)


class Both(nn.Module):
    """Two towers in one module, as open_clip's models."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = tower(1), tower(2)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        return self.text(text) if image is None else self.image(image)


class Trainer:
    """An object that is no module and has both towers."""

    def __init__(self) -> None:
        self.counted = {seed: Counted(tower(seed)) for seed in (1, 2)}
        self.image, self.text = (each.ddp for each in self.counted.values())

    def encode_image(self, x: Tensor) -> Tensor:
        return self.image(x)

    def encode_text(self, x: Tensor) -> Tensor:
        return self.text(x)


class Fails(nn.Module):
    """A layer that raises in one call, by its number."""

    def __init__(self) -> None:
        super().__init__()
        self.left = -1

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        if self.left == 0:
            raise ArithmeticError("in the middle")
        return x
