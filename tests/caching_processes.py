"""What two processes of test_caching_processes.py compute; each saves its results.

The oracle of a process is its own towers without caching: their gradients are averaged by hand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from caching_ranks import (
    PROCESSES,
    ROWS,
    SECONDS,
    Both,
    Counted,
    Fails,
    Trainer,
    averaged,
    counted_reductions,
    error,
    gradients,
    inputs,
    loss_of,
    sharded,
    tower,
    wholly_sharded,
)
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import mmcore

Results = dict[str, Any]
# Rows of each process; chunks have ROWS at most: 2 and 3 chunks, 1 and 3 (more than the first
# process has rows), 1 and 2.
UNEVEN, FEW, NONE = (5, 12), (2, 11), (0, 7)


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
    (image, text), plain, one = inputs(UNEVEN), tower(), Counted(tower())
    expected = averaged(loss_of(plain(image), plain(text)), plain)
    with mmcore.caching(ROWS) as cache:
        x, y, unused = (cache(one.ddp, z) for z in (image, text, text))
        loss = loss_of(x, y)
        loss.backward() if how == "cached" else cache.backward(loss)
    assert unused.requires_grad
    return {"error": error(gradients(one.ddp), expected), "exchanges": one.count}


def shared_and_sharded() -> Results:
    """One tower for both inputs, under FSDP2."""
    (image, text), plain, one = inputs(UNEVEN), tower(), sharded(tower())
    expected = averaged(loss_of(plain(image), plain(text)), plain)
    with counted_reductions() as counts:
        loss_of(*(mmcore.cached(one, z, ROWS) for z in (image, text))).backward()
    return {"error": error(gradients(one), expected), "exchanges": counts}


def frozen(wrap: Callable[[Any], Any]) -> Results:
    """The first layer needs no gradients; then none of the tower does."""
    (image, text), module = inputs(UNEVEN), tower()
    module[0].requires_grad_(False)
    plain = copy.deepcopy(module)
    wrapped = wrap(module)
    expected = averaged(loss_of(plain(image), text), plain[2:])
    loss_of(mmcore.cached(wrapped, image, ROWS), text).backward()
    found = [p for p in wrapped.parameters() if p.requires_grad]
    result = error(gradients(nn.ParameterList(found)), expected)
    wrapped.requires_grad_(False)
    assert not mmcore.cached(wrapped, image, ROWS).requires_grad
    return {"error": result, "exchanges": None}


def chained() -> Results:
    """The tower's output goes through the same tower again, and the inputs want gradients."""
    (image, _), plain, one = inputs(UNEVEN), tower(), Counted(tower())
    first, second = (image.clone().requires_grad_() for _ in range(2))
    expected = averaged(loss_of(plain(plain(first)), image), plain)
    found = mmcore.cached(one.ddp, mmcore.cached(one.ddp, second, ROWS), ROWS)
    loss_of(found, image).backward()
    parts = error([*gradients(one.ddp), second.grad], [*expected, first.grad])
    return {"error": parts, "exchanges": one.count}


def in_one_wrapper() -> Results:
    """Both towers in one DDP, called by name."""
    (image, text), plain = inputs(UNEVEN), Both()
    one = Counted(Both(), find_unused_parameters=True)
    expected = averaged(loss_of(plain(image), plain(text=text)), plain)
    x = mmcore.cached(one.ddp, {"image": image}, ROWS)
    y = mmcore.cached(partial(one.ddp, None), text, ROWS)
    loss_of(x, y).backward()
    return {"error": error(gradients(one.ddp), expected), "exchanges": one.count}


def of_one_object() -> Results:
    """Towers are methods of an object that knows both wrappers."""
    (image, text), plain, trainer = inputs(UNEVEN), [tower(1), tower(2)], Trainer()
    expected = averaged(loss_of(plain[0](image), plain[1](text)), *plain)
    methods = (trainer.encode_image, lambda x: trainer.encode_text(x))
    x, y = (mmcore.cached(each, z, ROWS) for each, z in zip(methods, (image, text), strict=True))
    loss_of(x, y).backward()
    counts = [each.count for each in trainer.counted.values()]
    return {"error": error(gradients(trainer.image, trainer.text), expected), "exchanges": counts}


def of_methods() -> Results:
    """Towers are methods of a model under FSDP2."""
    (image, text), plain, model = inputs(UNEVEN), Both(), Both()
    expected = averaged(loss_of(plain.image(image), plain.text(text)), plain)
    for each in (model.image, model.text):
        sharded(each)
    wholly_sharded(model)
    with counted_reductions() as counts:
        x = mmcore.cached(lambda z: model(z), image, ROWS)
        y = mmcore.cached(model.forward, {"text": text}, ROWS)
        loss_of(x, y).backward()
    return {"error": error(gradients(model), expected), "exchanges": counts}


def accumulated() -> Results:
    """A step in DDP's own no_sync, one whose forward alone is in it, and one outside of it."""
    (image, text), plain, one = inputs(UNEVEN), tower(), Counted(tower())
    first = averaged(loss_of(plain(image), text), plain)
    counts = []
    with one.ddp.no_sync():
        loss_of(mmcore.cached(one.ddp, image, ROWS), text).backward()
        loss = loss_of(mmcore.cached(one.ddp, image, ROWS), text)
    loss.backward()
    counts.append(one.count)
    loss_of(mmcore.cached(one.ddp, image, ROWS), text).backward()
    counts.append(one.count)
    return {"error": error(gradients(one.ddp), [3 * g for g in first]), "exchanges": counts}


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


def message_of(call: Callable[[], object]) -> Results:
    """The error that a call raises."""
    try:
        call()
    except (RuntimeError, ValueError) as raised:
        return {"error": 0.0, "exchanges": str(raised)}
    return {"error": 0.0, "exchanges": ""}


def inside_of_ddp() -> Results:
    """DDP around the cached tower."""
    wrapped = DistributedDataParallel(mmcore.nn.Cached(tower(), ROWS))
    return message_of(lambda: wrapped(inputs(UNEVEN)[0]))


def hidden() -> Results:
    """A tower that nothing in the function leads to."""
    found = iter([DistributedDataParallel(tower())])
    return message_of(lambda: mmcore.cached(lambda x: next(found)(x), inputs(UNEVEN)[0]))


def static_graph() -> Results:
    wrapped = DistributedDataParallel(tower(), static_graph=True)
    return message_of(lambda: mmcore.cached(wrapped, inputs(UNEVEN)[0]))


def around_a_sharded_tower() -> Results:
    """FSDP2 around a model whose cached tower is under FSDP2 by itself."""
    model = wholly_sharded(nn.Sequential(mmcore.nn.Cached(sharded(tower(1)), ROWS), tower(2)))
    return message_of(lambda: model(inputs((9, 9))[0]))


def around_a_tower() -> Results:
    """FSDP2 around a model whose tower is cached."""
    (image, text), plain = inputs(UNEVEN), nn.Sequential(tower(1), tower(2))
    expected = averaged(loss_of(plain(image), text), plain)
    with counted_reductions() as counts:
        model = wholly_sharded(nn.Sequential(mmcore.nn.Cached(tower(1), ROWS), tower(2)))
        loss_of(model(image), text).backward()
    return {"error": error(gradients(model), expected), "exchanges": counts}


CASES: dict[str, Callable[[], Results]] = {
    **{
        f"{name} {how} {label}": partial(under, rows, how)
        for name, under in {"ddp": under_ddp, "fsdp": under_fsdp}.items()
        for how in ("cached", "caching")
        for label, rows in {"uneven": UNEVEN, "few": FEW, "none": NONE}.items()
    },
    "ddp views": partial(under_ddp, UNEVEN, "cached", gradient_as_bucket_view=True),
    "ddp shared cached": partial(shared, "cached"),
    "ddp shared caching": partial(shared, "caching"),
    "fsdp shared": shared_and_sharded,
    "ddp frozen": partial(frozen, DistributedDataParallel),
    "fsdp frozen": partial(frozen, sharded),
    "ddp chained": chained,
    "ddp in one wrapper": in_one_wrapper,
    "ddp of one object": of_one_object,
    "fsdp methods": of_methods,
    "ddp accumulated": accumulated,
    "ddp interrupted": partial(interrupted, DistributedDataParallel),
    "fsdp interrupted": partial(interrupted, sharded),
    "ddp around": inside_of_ddp,
    "ddp hidden": hidden,
    "ddp static": static_graph,
    "fsdp around a sharded tower": around_a_sharded_tower,
    "fsdp around a tower": around_a_tower,
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
