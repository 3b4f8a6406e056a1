"""What two processes of test_several_processes.py compute; each saves its results."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

import mmcore
from mmcore import functional
from mmcore.nn import ProjectionHead

PROCESSES, ROWS, WIDTH = 2, 6, 8
SECONDS = 60
Results = dict[str, Any]


class Towers(nn.Module):
    """Two linear towers and a learned scale."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.image, self.text = (nn.Linear(WIDTH, WIDTH, dtype=dtype) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(1.5, dtype=dtype))
        with torch.no_grad():
            for parameter in (*self.image.parameters(), *self.text.parameters()):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, y = self.image(image), self.text(text)
        return functional.l2_normalize(x), functional.l2_normalize(y), self.log_scale.exp()


def head() -> nn.Module:
    """A small encoder with mmcore's modules in it; the same weights each time."""
    torch.manual_seed(5)
    return nn.Sequential(nn.Linear(WIDTH, 16), nn.GELU(), ProjectionHead(16, 4, norm="layer"))


def batch(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The rows of all processes."""
    generator = torch.Generator().manual_seed(7)
    image, text = (
        torch.randn(PROCESSES * ROWS, WIDTH, generator=generator, dtype=torch.float64)
        for _ in range(2)
    )
    return image.to(dtype), text.to(dtype)


def trained(model: nn.Module, rows: Tensor, steps: int = 2) -> None:
    """Some steps of gradient descent; the loss is a mean over rows."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3)
    direction = torch.linspace(-1, 1, 4)
    for _ in range(steps):
        optimizer.zero_grad()
        (model(rows) @ direction).square().mean().backward()
        optimizer.step()


def run(rank: int, folder: str) -> None:
    """The body of each process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )  # fmt: skip
    results = {
        **warned(), **compared(rank), **sharded(rank), **summed(rank), **ringed(rank),
        **in_fsdp2(rank), **compiled(rank),
    }  # fmt: skip
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def warned() -> Results:
    """How often a call with a group warns, then calls that compare the rows of a process alone."""
    x, y = (functional.l2_normalize(z[:ROWS]) for z in batch(torch.float32))
    counts = []
    for calls in (lambda: LOSSES["clip"](x, y, 5.0, process_group="world"), lambda: local(x, y)):
        with warnings.catch_warnings(record=True) as found:
            warnings.simplefilter("always")
            calls()
        counts.append(sum(each.category is mmcore.LocalBatchWarning for each in found))
    return {"warnings": counts}


def local(x: Tensor, y: Tensor) -> None:
    functional.clip_loss(x, y, 5.0)
    functional.nt_xent_loss(x, y, 5.0)


LOSSES: dict[str, Callable[..., Tensor]] = {
    "clip": functional.clip_loss,
    "smoothed clip": partial(functional.clip_loss, label_smoothing=0.1),
    "siglip": lambda x, y, s, **group: functional.siglip_loss(x, y, s, -2.0, **group),
    "nt_xent": functional.nt_xent_loss,
    "barlow_twins": lambda x, y, s, **group: s * functional.barlow_twins_loss(x, y, **group),
    "vse": lambda x, y, s, **group: functional.vse_loss(x, y, **group) + 0 * s,
}


def compared(rank: int) -> Results:
    """Value, gradients of features, and gradients of the weights after DDP's mean, by loss."""
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    image, text = (z[own] for z in batch(torch.float64))
    results: Results = {}
    for name, loss in LOSSES.items():
        model = Towers(torch.float64)
        wrapped = DistributedDataParallel(model)
        x, y, scale = wrapped(image, text)
        value = loss(x, y, scale, process_group="world")
        features = torch.autograd.grad(value, (x, y), retain_graph=True)
        value.backward()
        gradients = [parameter.grad for parameter in model.parameters()]
        results[name] = {"value": value.detach(), "features": features, "gradients": gradients}
    return results


def sharded(rank: int) -> Results:
    """Weights after some steps under FSDP, of both kinds."""
    from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

    own = slice(rank * ROWS, (rank + 1) * ROWS)
    rows = batch(torch.float32)[0][own]
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    second = head()
    for layer in (second[0], second[2], second):
        fully_shard(layer, mesh=mesh)
    trained(second, rows)
    weights = {name: value.full_tensor() for name, value in second.state_dict().items()}
    first = FullyShardedDataParallel(
        head(), device_id=torch.device("cpu"), use_orig_params=True,
        auto_wrap_policy=lambda module, recurse, **_: recurse or isinstance(module, ProjectionHead),
    )  # fmt: skip
    trained(first, rows)
    with FullyShardedDataParallel.summon_full_params(first):
        flat = {
            name.replace("_fsdp_wrapped_module.", ""): value.detach().clone()
            for name, value in first.named_parameters()
        }
    return {"fully_shard": weights, "FullyShardedDataParallel": flat}


def summed(rank: int) -> Results:
    """Gradients of the weights where ranks add them up, of unequal shares of the batch."""
    own = slice(0, 1) if rank == 0 else slice(1, None)
    image, text = (z[own] for z in batch(torch.float64))
    model = Towers(torch.float64)
    loss = functional.clip_loss(*model(image, text), process_group="world", gradients="sum")
    loss.backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    for gradient in gradients:
        dist.all_reduce(gradient)
    return {"summed": gradients}


def ringed(rank: int) -> Results:
    """The loss and the gradients of features in a ring, twice; float32."""
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    found = []
    for _ in range(2):
        x, y = (functional.l2_normalize(z[own]).requires_grad_() for z in batch(torch.float32))
        loss = functional.clip_loss(x, y, 5.0, process_group=dist.group.WORLD, exchange="ring")
        found.append((loss.detach(), *torch.autograd.grad(loss, (x, y))))
    return {"ring": found}


def in_fsdp2(rank: int) -> Results:
    """Gradients of the weights and of the scale under fully_shard; the group is its mesh."""
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    image, text = (z[own] for z in batch(torch.float64))
    model = Towers(torch.float64)
    model.log_scale = nn.Parameter(model.log_scale.detach()[None])  # FSDP shards dimension 0
    fully_shard(model, mesh=mesh)
    functional.clip_loss(*model(image, text), process_group=mesh).backward()
    return {"fsdp2": [parameter.grad.full_tensor() for parameter in model.parameters()]}


def compiled(rank: int) -> Results:
    """Loss and gradients of features, eager and from one graph."""
    own = slice(rank * ROWS, (rank + 1) * ROWS)
    loss = partial(functional.clip_loss, label_smoothing=0.1, process_group="world")
    found = []
    for function in (loss, torch.compile(loss, fullgraph=True, backend="aot_eager")):
        x, y = (z[own].clone().requires_grad_() for z in batch(torch.float32))
        value = function(x, y, 0.5)
        found.append((value.detach(), *torch.autograd.grad(value, (x, y))))
    return {"compiled": found}
