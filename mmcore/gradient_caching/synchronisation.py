"""Several processes: when DDP and FSDP exchange gradients, how many chunks each process runs."""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, TypeGuard

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.nn.parallel import DistributedDataParallel

FSDP = "torch.distributed.fsdp"


def wrappers_of(modules: Iterable[nn.Module]) -> tuple[nn.Module, ...]:
    """The modules that exchange gradients: DDP's, and those that `fully_shard` was called for."""
    every = dict.fromkeys(each for module in modules for each in module.modules())
    return tuple(each for each in every if _is_ddp(each) or _is_sharded(each))


@contextmanager
def recorded(wrappers: Iterable[nn.Module]) -> Iterator[set[nn.Module]]:
    """The wrappers that run in the block; a method of a model may leave out some."""
    found: set[nn.Module] = set()
    with ExitStack() as stack:
        for wrapper in wrappers:
            handle = wrapper.register_forward_pre_hook(lambda module, _: found.add(module))
            stack.callback(handle.remove)
        yield found


@contextmanager
def refusing_unknown(wrappers: Collection[nn.Module]) -> Iterator[None]:
    """Raises where another wrapper runs in the block: it would exchange gradients of every chunk.

    Without processes it does nothing: hooks of all modules make torch.compile compile anew.
    """
    if not dist.is_available() or not dist.is_initialized():
        yield
        return

    def check(module: nn.Module, _: object) -> None:
        if (_is_ddp(module) or _is_sharded(module)) and module not in wrappers:
            raise RuntimeError(
                f"tower runs a {type(module).__name__} that gradient caching did not find in it, "
                f"and which would exchange gradients after every chunk: let the tower be a module, "
                f"a method of one, or a function whose variables are the modules"
            )

    handle = register_module_forward_pre_hook(check)
    try:
        yield
    finally:
        handle.remove()


def _is_ddp(module: nn.Module) -> TypeGuard[DistributedDataParallel]:
    return isinstance(module, DistributedDataParallel)


def _is_sharded(module: nn.Module) -> bool:
    # Who has not imported FSDP has no such module.
    fsdp = sys.modules.get(FSDP)
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def _groups(module: nn.Module) -> list[Any]:
    """FSDP2's groups of parameters of a module, each with its flags and its mesh."""
    if not _is_sharded(module):
        return []
    state = module._get_fsdp_state()  # type: ignore[operator]
    groups = getattr(state, "_fsdp_param_groups", None)
    if groups is None:  # before torch 2.13 there was one at most
        groups = [state._fsdp_param_group]
    return [group for group in groups if group is not None]


def synchronises(wrapper: nn.Module) -> bool:
    """Whether its next backward exchanges gradients."""
    if _is_ddp(wrapper):
        return wrapper.require_backward_grad_sync
    return any(group.reduce_grads for group in _groups(wrapper))


@contextmanager
def without_synchronisation(wrapper: nn.Module) -> Iterator[None]:
    """Gradients of the block stay on this process. After an error too, all is as before."""
    if _is_ddp(wrapper):
        with wrapper.no_sync():
            yield
        return
    groups = _groups(wrapper)
    before = [(group.reduce_grads, group.all_reduce_grads) for group in groups]
    wrapper.set_requires_gradient_sync(False, recurse=False)  # type: ignore[operator]
    try:
        yield
    finally:
        for group, (reduces, all_reduces) in zip(groups, before, strict=True):
            group.reduce_grads, group.all_reduce_grads = reduces, all_reduces


@contextmanager
def synchronising_only(
    wanted: Collection[nn.Module], wrappers: Iterable[nn.Module]
) -> Iterator[None]:
    """In the block `wanted` alone of the wrappers may exchange gradients."""
    with ExitStack() as stack:
        for wrapper in wrappers:
            if wrapper not in wanted:
                stack.enter_context(without_synchronisation(wrapper))
        yield


def agreed_count(count: int, wrappers: Iterable[nn.Module]) -> int:
    """The largest number of chunks of all processes that share a tower's weights.

    FSDP gathers weights in every forward: a process that runs fewer forwards than the others lets
    them wait for ever. DDP exchanges gradients alone, once, and needs no agreement.
    """
    meshes = {group.mesh_info.mesh for wrapper in wrappers for group in _groups(wrapper)}
    for mesh in sorted(meshes, key=str):
        largest = torch.tensor(count, device=mesh.device_type)
        for group in mesh.get_all_groups():
            dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=group)
        count = int(largest)
    return count


def discard_unreduced(wrappers: Iterable[nn.Module]) -> None:
    """Forgets gradients that FSDP2 keeps until the exchange, after an error: zero_grad cannot."""
    for parameter in (p for w in wrappers for group in _groups(w) for p in group.fsdp_params):
        parameter.unsharded_accumulated_grad = None
        if hasattr(parameter, "_unsharded_param"):
            parameter.unsharded_param.grad = None


def refuse_inside_of_wrapper(wrappers: Iterable[nn.Module]) -> None:
    """Raises where DDP's or FSDP2's forward around the tower is under way."""
    if DistributedDataParallel._get_active_ddp_module() is not None:
        raise RuntimeError(
            "gradient caching inside of the forward of DistributedDataParallel would exchange "
            "gradients after every chunk: wrap the tower first, then cache it, as in "
            "mmcore.nn.Cached(DistributedDataParallel(tower))"
        )
    states = [w._get_fsdp_state() for w in wrappers if _is_sharded(w)]  # type: ignore[operator]
    roots = {id(state._state_ctx.iter_forward_root) for state in states} - {id(None)}
    if roots - {id(state) for state in states}:
        raise RuntimeError(
            "gradient caching of a tower under fully_shard inside of the forward of a larger "
            "module under fully_shard: the larger one holds back gradients that the tower has to "
            "exchange. Call the tower by itself, or apply fully_shard to the larger one alone"
        )


def refuse_static_graph(wrappers: Iterable[nn.Module]) -> None:
    """Raises for an option of DDP that has no backward without an exchange."""
    if any(_is_ddp(wrapper) and wrapper.static_graph for wrapper in wrappers):
        raise ValueError(
            "tower must not be DistributedDataParallel(static_graph=True), whose no_sync() fails "
            "in the first step: leave static_graph out"
        )
