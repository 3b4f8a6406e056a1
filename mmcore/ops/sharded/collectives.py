"""torch's collectives under the names of every supported version, and errors that say what failed.

Data that is only moved goes as bytes: not every backend knows every dtype. Sums are formed here, in
the order of the ranks, so that they have the same bits each time, whatever the backend does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

# Below this a sum gathers all parts: one collective instead of two.
FEW_NUMBERS = 4096
# To be called once: what has come is the caller's alone then.
Wait = Callable[[], Tensor]


class Group(NamedTuple):
    """A process group that this process is in."""

    name: str
    handle: dist.ProcessGroup
    rank: int
    size: int


def group_of(name: str) -> Group:
    """The group that torch has registered under this name."""
    from torch.distributed import distributed_c10d  # not in every build of torch

    handle = distributed_c10d._resolve_process_group(name)  # type: ignore
    return Group(name, handle, dist.get_rank(handle), dist.get_world_size(handle))


def device_of(name: str) -> torch.device:
    """Where the group exchanges tensors that are on no device yet: the CPU, if it can."""
    backend = dist.get_backend_config(group_of(name).handle)
    return torch.device("cuda" if backend in ("nccl", "cuda:nccl") else "cpu")


@contextmanager
def step(group: Group, what: str) -> Iterator[None]:
    """Errors of a collective name the group, the step and what to do."""
    try:
        yield
    except RuntimeError as error:
        if str(error).startswith("mmcore: "):
            raise
        raise RuntimeError(
            f"mmcore: rank {group.rank} of the {group.size} ranks of process group {group.name!r} "
            f"failed in step {what!r}: {error}. Another process has ended, has stopped, or has not "
            "made this call. Every process of the group must make the same calls in the same "
            "order, the backward too. End all processes and resume from a checkpoint; where one "
            "was only slow, give init_process_group a longer timeout"
        ) from error


def start_all_gather(rows: Tensor, group: Group, what: str) -> Wait:
    """Starts to gather as many rows of every rank; what waits for (W, rows, …)."""
    rows = rows.contiguous()
    found = rows.new_empty((group.size, *rows.shape))
    if rows.numel() == 0:
        return lambda: found
    gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
    # The threaded group of tests counts the rows of what it is given: (W, 1, bytes).
    with step(group, what):
        work = gather(
            _as_bytes(found).view(group.size, -1), _as_bytes(rows).view(1, -1),
            group=group.handle, async_op=True,
        )  # fmt: skip
    return _waiting(work, found, rows, group, what)


def all_gather(rows: Tensor, group: Group, what: str) -> Tensor:
    """(W, rows, …): every rank has the same number of rows."""
    return start_all_gather(rows, group, what)()


def gather_uneven(rows: Tensor, counts: Sequence[int], group: Group, what: str) -> Tensor:
    """The rows of all ranks, one rank after the other."""
    parts = all_gather(padded(rows, max(counts)), group, what)
    return joined(parts, [slice(0, count) for count in counts])


def padded(rows: Tensor, count: int) -> Tensor:
    """With rows of zeros at the end."""
    missing = count - rows.shape[0]
    return rows if missing == 0 else torch.cat([rows, rows.new_zeros((missing, *rows.shape[1:]))])


def joined(parts: Tensor, places: Sequence[slice]) -> Tensor:
    """These rows of each part; no copy where they are all of its rows."""
    if all(place.stop == parts.shape[1] and place.start == 0 for place in places):
        return parts.flatten(0, 1)
    return torch.cat([part[place] for part, place in zip(parts, places, strict=True)])


def start_all_to_all(
    rows: Tensor, given: Sequence[int], taken: Sequence[int], group: Group, what: str
) -> Wait:
    """Starts to send given[r] of the rows to rank r; what waits for taken[r] rows of each rank."""
    rows = rows.contiguous()
    found = rows.new_empty((sum(taken), *rows.shape[1:]))
    width = prod(rows.shape[1:]) * rows.element_size()
    sent, received = _as_bytes(rows).view(-1, width), _as_bytes(found).view(-1, width)
    with step(group, what):
        work = dist.all_to_all_single(
            received, sent, list(taken), list(given), group=group.handle, async_op=True
        )
    return _waiting(work, found, rows, group, what)


def all_to_all(
    rows: Tensor, given: Sequence[int], taken: Sequence[int], group: Group, what: str
) -> Tensor:
    """given[r] of the rows go to rank r; taken[r] rows come from each rank, in their order."""
    return start_all_to_all(rows, given, taken, group, what)()


def parts_of_owner(
    rows: Tensor, counts: Sequence[int], group: Group, what: str
) -> tuple[Tensor, ...]:
    """Of rows for every rank, those for this one: a tensor from each rank, in rank order."""
    own = counts[group.rank]
    found = all_to_all(rows, counts, [own] * group.size, group, what)
    return found.split(own) if own else (found,) * group.size


def sum_of_ranks(value: Tensor, group: Group, what: str) -> Tensor:
    """Σ over ranks, added in rank order, the same bits on every rank."""
    flat = value.reshape(-1)
    if flat.numel() <= FEW_NUMBERS:
        return in_order(tuple(all_gather(flat, group, what))).view(value.shape)
    share = -(-flat.numel() // group.size)
    sizes = [max(0, min(share, flat.numel() - rank * share)) for rank in range(group.size)]
    own = in_order(parts_of_owner(flat, sizes, group, what))
    return gather_uneven(own, sizes, group, what).view(value.shape)


def in_order(parts: Sequence[Tensor]) -> Tensor:
    """The sum of the parts, one after the other."""
    total = parts[0].clone()
    for part in parts[1:]:
        total += part
    return total


def offsets(counts: Sequence[int]) -> list[int]:
    """The number of the first row of each rank, and the number of all rows."""
    return [0, *accumulate(counts)]


def _as_bytes(value: Tensor) -> Tensor:
    return value.view(-1).view(torch.uint8)


def _waiting(work: dist.Work | None, found: Tensor, sent: Tensor, group: Group, what: str) -> Wait:
    held = [sent, found]  # until it was sent, and has come

    def wait() -> Tensor:
        if work is not None:
            with step(group, what):
                work.wait()
        found = held.pop()
        held.clear()
        return found

    return wait
