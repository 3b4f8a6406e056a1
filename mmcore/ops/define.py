"""The one place where ops are registered with torch."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch._decomp import register_decomposition

from mmcore import backends
from mmcore.ops.direct import direct
from mmcore.ops.flops import Formula, count_by

LIBRARY = torch.library.Library("mmcore", "DEF")


def define(
    name: str, schema: str, *, fake: Callable[..., Any], run: Callable[..., Any], flops: Formula,
    decomposes: bool = False,
) -> Callable[..., Any]:  # fmt: skip
    """Registers ``mmcore::<name>`` for every device and for torch.compile; returns its call.

    The first argument of the schema is the tensor, or the first of the tensors, that decides which
    backend serves a call; the last is the name of the backend asked for. `run` takes the name of
    the backend that serves, then all arguments but the last; `flops` takes all arguments. The op
    itself has no gradient, and says so instead of a silent zero; autograd.py gives it one. Where it
    `decomposes`, exporters such as torch.onnx put the reference's operators in its place.
    """

    def dispatch(*arguments: Any) -> Any:
        first = backends.first_tensor(arguments)
        name = backends.choose(arguments[-1], first)
        device = first.device
        # Triton launches on torch's current device, which need not be that of the tensors.
        is_current = not first.is_cuda or device.index == torch.cuda.current_device()
        if is_current and not torch.is_autocast_enabled(device.type):
            return run(name, *arguments[:-1])
        with torch.cuda.device_of(first), without_autocast(device.type):
            return run(name, *arguments[:-1])

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(f"mmcore::{name} has no gradient: call mmcore.functional")

    dispatch.__name__ = dispatch.__qualname__ = name
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, dispatch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mmcore::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(f"mmcore::{name}", refuse, lib=LIBRARY)
    count_by(name, flops)
    op = getattr(torch.ops.mmcore, name).default
    if decomposes:
        register_decomposition(op)(lambda *arguments: run("reference", *arguments[:-1]))
        # Otherwise a trace of symbolic sizes takes the decomposition for the fake.
        register_decomposition(op, type="meta")(fake)
    return direct(op, dispatch)


def without_autocast(device_type: str) -> AbstractContextManager[object]:
    """Dtypes were settled above the op: autocast must not round inside the reference."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()
