"""A tower whose batches need not fit into its memory."""

from __future__ import annotations

import sys
from typing import Any

from torch import nn

from mmcore.functional.options import check_count
from mmcore.gradient_caching import DEFAULT_ROWS, cached_call
from mmcore.tracing import refuse_script


class Cached(nn.Module):
    """A tower computed in chunks, forward and backward: `mmcore.cached`.

    Equivalent to the tower, which is its only submodule, `tower`. Its call takes the positional
    arguments and those by name that the tower takes. Without grad mode the tower itself is called.
    Put DistributedDataParallel inside: ``Cached(DistributedDataParallel(tower))``.

    Args:
        tower: row i of its outputs depends on row i of its inputs alone.
        rows: the most rows of a chunk.

    Example:
        >>> import torch, mmcore
        >>> tower = mmcore.nn.Cached(torch.nn.Linear(8, 4), rows=64)
        >>> x = tower(torch.randn(256, 8))
        >>> mmcore.functional.nt_xent_loss(x, x.flip(1), 10.0).backward()
        >>> tower.tower.weight.grad.shape
        torch.Size([4, 8])
    """

    __prepare_scriptable__ = refuse_script

    def __init__(self, tower: nn.Module, rows: int = DEFAULT_ROWS) -> None:
        super().__init__()
        if not isinstance(tower, nn.Module):
            raise TypeError(f"tower must be a module, got {type(tower).__name__}")
        self.tower, self.rows = tower, check_count("rows", rows, sys.maxsize)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the tower returns for these arguments."""
        return cached_call(self.tower, args, kwargs, self.rows)

    def extra_repr(self) -> str:
        return f"rows={self.rows}"
