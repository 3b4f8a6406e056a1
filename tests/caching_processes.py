"""What two processes of test_caching_processes.py compute; each saves its results.

The oracle of a process is its own towers without caching: their gradients are averaged by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel

import mmcore
from mmcore import functional

PROCESSES, SECONDS, WIDTH, ROWS = 2, 60, 6, 4
Results = dict[str, Any]
Tower = Callable[[Tensor], Tensor]
# Rows of each process; chunks have ROWS at most: 2 and 3 chunks, 1 and 3, 1 and 2.
UNEVEN, FEW, NONE = (5, 12), (1, 11), (0, 7)


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
    def hook(self, _, bucket):  # noqa: ANN
        self.count += 1
        done = dist.all_reduce(bucket.buffer(), async_op=True).get_future()
        return done.then(lambda future: future.value()[0] / PROCESSES)


def sharded(module: nn.Sequential) -> nn.Sequential:
    """Under FSDP2: its linear layers by themselves, and the rest."""
    mesh = dist.init_device_mesh("cpu", (PROCESSES,))
    for layer in (module[0], module[2]):
        fully_shard(layer, mesh=mesh)
    return fully_shard(module, mesh=mesh)


@contextmanager
def counted_reductions() -> Iterator[list[int]]:
    """How often FSDP2 exchanged gradients in the block: one number, in a list."""
    counts = [0]
    original = dist.reduce_scatter_tensor

    def counting(*arguments: Any, **options: Any) -> Any:
        counts[0] += 1
        return original(*arguments, **options)

    dist.reduce_scatter_tensor = counting
    try:
        yield counts
    finally:
        dist.reduce_scatter_tensor = original


def two_towers(rows: tuple[int, int], wrap: Callable[[Any], Any], how: str) -> Results:
    """Two steps of two towers, beside the same steps without caching."""
    image, text = inputs(rows)
    plain, wrapped = [tower(1), tower(2)], [wrap(tower(1)), wrap(tower(2))]
    errors = []
    for _ in range(2):
        expected = averaged(loss_of(plain[0](image), plain[1](text)), *plain)
        if how == "cached":
            x, y = (mmcore.cached(t, z, ROWS) for t, z in zip(wrapped, (image, text), strict=True))
            loss_of(x, y).backward()
        else:
            with mmcore.caching(ROWS) as cache:
                x, y = (cache(t, z) for t, z in zip(wrapped, (image, text), strict=True))
                cache.backward(loss_of(x, y))
        errors.append(error(gradients(*wrapped), expected))
        for module in (*plain, *wrapped):
            for parameter in module.parameters():
                parameter.grad = None
    return {"error": max(errors)}


def under_ddp(rows: tuple[int, int], how: str, **options: Any) -> Results:
    counted: list[Counted] = []

    def wrap(module: nn.Module) -> nn.Module:
        counted.append(Counted(module, **options))
        return counted[-1].ddp

    return {**two_towers(rows, wrap, how), "exchanges": [each.count for each in counted]}


def under_fsdp(rows: tuple[int, int], how: str) -> Results:
    with counted_reductions() as counts:
        return {**two_towers(rows, sharded, how), "exchanges": counts}


def shared(how: str) -> Results:
    """One tower for both inputs; a third output, alive, is in no loss."""
    image, text = inputs(UNEVEN)
    plain, one = tower(), Counted(tower())
    expected = averaged(loss_of(plain(image), plain(text)), plain)
    with mmcore.caching(ROWS) as cache:
        x, y, unused = (cache(one.ddp, z) for z in (image, text, text))
        loss = loss_of(x, y)
        loss.backward() if how == "cached" else cache.backward(loss)
    assert unused.requires_grad
    return {"error": error(gradients(one.ddp), expected), "exchanges": one.count}


def chained() -> Results:
    """The tower's output goes through the same tower again, and the inputs want gradients."""
    (image, _), plain, one = inputs(UNEVEN), tower(), Counted(tower())
    first, second = (image.clone().requires_grad_() for _ in range(2))
    expected = averaged(loss_of(plain(plain(first)), image), plain)
    found = mmcore.cached(one.ddp, mmcore.cached(one.ddp, second, ROWS), ROWS)
    loss_of(found, image).backward()
    parts = error([*gradients(one.ddp), second.grad], [*expected, first.grad])
    return {"error": parts, "exchanges": one.count}


class Both(nn.Module):
    """Two towers in one module, as open_clip's models."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = tower(1), tower(2)

    def forward(self, image: Tensor | None = None, text: Tensor | None = None) -> Tensor:
        return self.text(text) if image is None else self.image(image)


def in_one_wrapper() -> Results:
    """Both towers in one DDP, called by name."""
    (image, text), plain = inputs(UNEVEN), Both()
    one = Counted(Both(), find_unused_parameters=True)
    expected = averaged(loss_of(plain(image), plain(text=text)), plain)
    x = mmcore.cached(one.ddp, {"image": image}, ROWS)
    y = mmcore.cached(partial(one.ddp, None), text, ROWS)
    loss_of(x, y).backward()
    return {"error": error(gradients(one.ddp), expected), "exchanges": one.count}


def accumulated() -> Results:
    """A step in DDP's own no_sync, then one outside of it."""
    (image, text), plain, one = inputs(UNEVEN), tower(), Counted(tower())
    first = averaged(loss_of(plain(image), text), plain)
    counts = []
    with one.ddp.no_sync():
        loss_of(mmcore.cached(one.ddp, image, ROWS), text).backward()
    counts.append(one.count)
    loss_of(mmcore.cached(one.ddp, image, ROWS), text).backward()
    counts.append(one.count)
    return {"error": error(gradients(one.ddp), [2 * g for g in first]), "exchanges": counts}


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


def interrupted(wrap: Callable[[Any], Any]) -> Results:
    """The replay fails in its second chunk; the next step is as if nothing had been."""
    (image, text), plain, fails = inputs((9, 9)), tower(), Fails()
    wrapped = wrap(nn.Sequential(*tower(), fails))
    expected = averaged(loss_of(plain(image), text), plain)
    fails.left = 5  # three chunks forward, then the second of the replay
    x = mmcore.cached(wrapped, image, ROWS)
    raised = 0
    try:
        loss_of(x, text).backward()
    except ArithmeticError:
        raised = 1
    del x
    if hasattr(wrapped, "reset_iter_state"):  # FSDP2 asks for this after every error
        wrapped.reset_iter_state()
    wrapped.zero_grad()
    loss_of(mmcore.cached(wrapped, image, ROWS), text).backward()
    return {"error": error(gradients(wrapped), expected), "exchanges": raised}


def inside_of_ddp() -> Results:
    """DDP around the cached tower."""
    wrapped = DistributedDataParallel(mmcore.nn.Cached(tower(), ROWS))
    try:
        wrapped(inputs(UNEVEN)[0])
    except RuntimeError as raised:
        return {"error": 0.0, "exchanges": str(raised)}
    return {"error": 0.0, "exchanges": ""}


def inside_of_fsdp() -> Results:
    """FSDP2 around a model whose tower is cached."""
    (image, text), plain = inputs((9, 9)), nn.Sequential(tower(1), tower(2))
    expected = averaged(loss_of(plain(image), text), plain)
    model = nn.Sequential(mmcore.nn.Cached(sharded(tower(1)), ROWS), tower(2))
    fully_shard(model, mesh=dist.init_device_mesh("cpu", (PROCESSES,)))
    loss_of(model(image), text).backward()
    return {"error": error(gradients(model), expected), "exchanges": None}


CASES: dict[str, Callable[[], Results]] = {
    **{
        f"{name} {how} {label}": partial(under, rows, how)
        for name, under in {"ddp": under_ddp, "fsdp": under_fsdp}.items()
        for how in ("cached", "caching")
        for label, rows in {"uneven": UNEVEN, "few": FEW, "none": NONE}.items()
    },
    "ddp views": partial(under_ddp, UNEVEN, "cached", gradient_as_bucket_view=True),
    "ddp static": partial(under_ddp, UNEVEN, "cached", static_graph=True),
    "ddp shared cached": partial(shared, "cached"),
    "ddp shared caching": partial(shared, "caching"),
    "ddp chained": chained,
    "ddp in one wrapper": in_one_wrapper,
    "ddp accumulated": accumulated,
    "ddp interrupted": partial(interrupted, DistributedDataParallel),
    "fsdp interrupted": partial(interrupted, sharded),
    "ddp inside": inside_of_ddp,
    "fsdp inside": inside_of_fsdp,
}


def run(rank: int, folder: str) -> None:
    """The body of each process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=PROCESSES,
        timeout=timedelta(seconds=SECONDS),
    )  # fmt: skip
    results = {name: copy.deepcopy(case()) for name, case in CASES.items()}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()
