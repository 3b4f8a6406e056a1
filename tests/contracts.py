"""torch's own checks of an op, for both ops of a family."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.ops.family import Family
from mmcore.ops.layout import flat

CHECKS = (
    "test_schema",
    "test_autograd_registration",
    "test_faketensor",
    "test_aot_dispatch_dynamic",
)


def layouts() -> list[Tensor]:
    """One matrix, dense, transposed and strided."""
    return [torch.randn(10, 6), torch.randn(6, 10).T, torch.randn(20, 12)[::2, ::2]]


def layouts_of_three(layout: int) -> list[Tensor]:
    """(10, 6) each, of one layout."""
    return [layouts()[layout] for _ in range(3)]


def opcheck(packet: torch._ops.OpOverloadPacket, *arguments: Any) -> None:
    torch.library.opcheck(packet.default, arguments, test_utils=CHECKS)


def check_family(
    family: Family[Any, Any, Any, Any], inputs: Any, wanted: Any, machine: str, kept_size: int = 0,
    rounds: bool = True,
) -> None:  # fmt: skip
    """The op, and its backward for random gradients of the results."""
    op, backward = (
        getattr(torch.ops.mmcore, name) for name in (family.name, f"{family.name}_backward")
    )
    kept = (kept_size,) if family.keeps else ()
    opcheck(op, *inputs, *kept, machine)
    found = family.results(*op(*inputs, *kept, machine))
    upstream = [torch.randn_like(getattr(found, name)) for name in family.upstream._fields]
    opcheck(backward, *inputs, *found, *upstream, flat(wanted), rounds, machine)
