"""Rows that several processes hold: the argument `process_group` of every objective.

docs/several-processes.md says what a process group is given for, and which gradients come back.
"""

from __future__ import annotations

import torch

from mmcore.functional.options import as_integer
from mmcore.functional.ranks import ProcessGroup, as_ranks

__all__ = ["row_offset"]


def row_offset(n: int, process_group: ProcessGroup = "world") -> int:
    """The number of this process's first row among the rows of all processes.

    Rows are numbered rank after rank: those of rank 0 come first. Equivalent to ::

        counts = [None] * dist.get_world_size()
        dist.all_gather_object(counts, n)
        sum(counts[: dist.get_rank()])

    A `target` numbers the columns of all processes: ``row_offset(len(y)) + own_column``.

    Args:
        n: how many rows this process has; 0 is allowed.
        process_group: "world", a process group of torch.distributed, or a DeviceMesh of one
            dimension; every process of it must call this function. None: 0, without a call.

    Returns:
        The sum of the `n` of all lower ranks.

    Raises:
        TypeError, ValueError: `n` is no integer or below 0; no group, or one that this process is
            not in. RuntimeError: another process has ended or did not make the call.

    Memory:
        A few numbers of each process.

    Example:
        >>> import mmcore
        >>> mmcore.distributed.row_offset(8, process_group=None)
        0
    """
    count = as_integer("n", n)
    if count < 0:
        raise ValueError(f"n must be at least 0, got {count}")
    ranks = as_ranks(process_group)
    if ranks is None:
        return 0
    like = torch.empty(0, device=ranks.device())
    agreed = ranks.agree("row_offset", {"n": like}, sizes={"n": count})
    return int(agreed[: ranks.rank, 0].sum())
