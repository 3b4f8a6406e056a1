"""The one place where an op is registered with torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmcore import backends

LIBRARY = torch.library.Library("mmcore", "DEF")


def define(
    name: str,
    schema: str,
    *,
    fake: Callable[..., Any],
    implementations: Mapping[str, Callable[..., Any]],
    save: Callable[..., None] | None = None,
    backward: Callable[..., Any] | None = None,
) -> None:
    """Registers ``mmcore::<name>`` for every device, for torch.compile and for autograd.

    The first argument of the schema is the tensor, or the first of the tensors, that decides which
    implementation serves a call, the last is the name of the backend asked for. `save` and
    `backward` are the two halves of the gradient as `torch.library.register_autograd` takes them;
    without them the op is the end of the line, and differentiating through it is an error instead
    of a silent zero.
    """

    def dispatch(*arguments: Any) -> Any:
        first = arguments[0] if isinstance(arguments[0], Tensor) else arguments[0][0]
        implementation = implementations[backends.choose(arguments[-1], first)]
        # The dtypes were settled above the op; autocast must not round inside the reference.
        with torch.autocast(first.device.type, enabled=False):
            return implementation(*arguments[:-1])

    def refuse(ctx: Any, *gradients: Any) -> Any:
        raise NotImplementedError(f"mmcore::{name} cannot be differentiated a second time")

    dispatch.__name__ = dispatch.__qualname__ = name
    LIBRARY.define(f"{name}{schema}", tags=(torch.Tag.pt2_compliant_tag,))
    LIBRARY.impl(name, dispatch, "CompositeExplicitAutograd")
    torch.library.register_fake(f"mmcore::{name}", fake, lib=LIBRARY)
    torch.library.register_autograd(
        f"mmcore::{name}", backward or refuse, setup_context=save, lib=LIBRARY
    )
