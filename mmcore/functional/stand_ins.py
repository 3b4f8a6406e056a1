"""What torch has in place of tensors and mmcore does not take: errors that name the way out."""

from __future__ import annotations

from torch import Tensor
from torch.fx import Proxy


def check_is_tensor(name: str, value: object) -> None:
    """`value` is a tensor whose numbers are here: no record of a trace, and no part of a mesh."""
    if isinstance(value, Proxy):
        raise TypeError(
            f"{name} must be a tensor, got a Proxy of torch.fx.symbolic_trace: call "
            f"mmcore.functional.<name> by its whole name, make a loss module a leaf of the tracer, "
            f"or use torch.export.export"
        )
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor, got {type(value).__name__}")
    # Not by its type, which would import torch.distributed.tensor.
    if hasattr(value, "to_local") and hasattr(value, "full_tensor"):
        raise TypeError(
            f"{name} must be a plain tensor, got {type(value).__name__}: pass {name}.to_local(), "
            f"the part of this process, or {name}.full_tensor(), the whole"
        )
