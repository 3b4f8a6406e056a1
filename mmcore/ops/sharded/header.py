"""What ranks tell each other before any data moves: sizes, dtypes, widths, flags.

    agreed[r] = (the sizes that rank r was given, its workspace in bytes, 1 for a ring, its machine)

Each rank sends its sizes, which may differ, and a text, which may not: a line for each argument. If
any texts differ, all ranks exchange them and all raise the same ValueError, which names a rank and
an argument. A rank that refuses its own arguments sends its error in place of the text.
"""

from __future__ import annotations

import hashlib
import socket
from collections.abc import Sequence
from functools import cache
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch import Tensor

from mmcore.backends import workspace
from mmcore.ops.define import define
from mmcore.ops.flops import no_flops
from mmcore.ops.sharded.collectives import Group, all_gather, group_of, padded

STEP = "comparison of arguments"
# The fields before the sizes.
TEXT, LENGTH, REFUSES, LOWEST, HIGHEST = range(5)
FIELDS = 16
# The fields after the sizes: the workspace, the exchange, the machine.
LAST = 3
_calls: WeakKeyDictionary[dist.ProcessGroup, int] = WeakKeyDictionary()


def calls(name: str) -> int:
    """How many headers this rank has exchanged in the group."""
    return _calls.get(group_of(name).handle, 0)


def refuse(name: str, function: str, error: Exception, device: torch.device) -> None:
    """Tells the others, which wait in the header of the same call, that there will be none."""
    text = f"{function}: {type(error).__name__}: {error}"
    group = group_of(name)
    _exchange(group, [], text, True, device)


def same_step(like: Tensor, step: str, name: str) -> None:
    """Raises where another rank is elsewhere.

    On a CPU alone: there a collective of another size ends the process, and nothing has to wait.
    """
    if like.device.type == "cpu":
        _exchange(group_of(name), [], f"the step: {step}", False, like.device)


def agree(
    like: Tensor, target: Tensor | None, sizes: Sequence[int], columns: int, text: str,
    has_diagonal: bool, is_ring: bool, name: str,
) -> Tensor:  # fmt: skip
    """(W, sizes + LAST) int64 on the CPU.

    `columns` says which of the sizes counts the columns that `target` numbers, or as many columns
    as there are rows, of the first size, where `has_diagonal`. The device of `like` is that of the
    exchange.
    """
    lowest, highest = -1, -1
    if target is not None and target.numel():
        lowest, highest = int(target.min()), int(target.max())
    group = group_of(name)
    bytes_ = workspace.current(like.device.type)
    numbers = [lowest, highest, *sizes, bytes_, int(is_ring), machine()]
    found = _exchange(group, numbers, text, False, like.device)
    agreed = found[:, HIGHEST + 1 : HIGHEST + 1 + len(sizes) + LAST].contiguous()
    if not bool((agreed[:, : len(sizes)].sum(0) > 0).all()):
        raise ValueError(
            f"one of the ranks of process group {name!r} must have at least 1 row, got none on all"
        )
    rows, count = int(agreed[:, 0].sum()), int(agreed[:, columns].sum())
    if has_diagonal and rows > count:
        raise ValueError(
            f"target must be given where x has more rows than y: got {rows} and {count} on all "
            f"ranks of process group {name!r}"
        )
    _check_target(found, count, group)
    return agreed


@cache
def machine() -> int:
    """The same number for processes of one machine: ranks of one are near each other."""
    return _digest(socket.gethostname().encode())


def _digest(text: bytes) -> int:
    return int.from_bytes(hashlib.sha256(text).digest()[:7], "big")


def _exchange(
    group: Group, numbers: Sequence[int], text: str, refuses: bool, device: torch.device
) -> Tensor:
    """The fields of all ranks; raises where they do not go together."""
    _calls[group.handle] = _calls.get(group.handle, 0) + 1
    spelled = text.encode()
    row = [_digest(spelled), len(spelled), int(refuses), *numbers]
    # Of one length whatever was called, so that two different calls do not exchange two sizes.
    row += [0] * (FIELDS - len(row))
    fields = torch.tensor(row, dtype=torch.int64)
    found = all_gather(fields.to(device), group, STEP).cpu()
    if (found[:, TEXT] != found[0, TEXT]).any() or found[:, REFUSES].any():
        _explain(group, found, spelled, device)
    return found


def _explain(group: Group, found: Tensor, text: bytes, device: torch.device) -> None:
    longest = int(found[:, LENGTH].max())
    own = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    every = all_gather(padded(own, longest).to(device), group, STEP).cpu()
    texts = [
        bytes(every[rank, : int(found[rank, LENGTH])].tolist()).decode()
        for rank in range(group.size)
    ]
    where = f"process group {group.name!r}"
    refusing = found[:, REFUSES].nonzero()
    if refusing.numel():
        rank = int(refusing[0])
        if rank == group.rank or found[group.rank, REFUSES]:
            return  # it raises its own error
        raise ValueError(f"rank {rank} of {where} refused its arguments: {texts[rank]}")
    for rank, other in enumerate(texts):
        for line, first in zip(other.splitlines(), texts[0].splitlines(), strict=False):
            if line != first:
                argument, value = line.split(": ", 1)
                raise ValueError(
                    f"{argument} must be alike on all ranks of {where}: rank {rank} has "
                    f"{value}, rank 0 has {first.split(': ', 1)[1]}"
                )
    raise ValueError(f"all ranks of {where} must make the same calls with arguments that are alike")


def _check_target(found: Tensor, columns: int, group: Group) -> None:
    for rank in range(group.size):
        lowest, highest = found[rank, LOWEST].item(), found[rank, HIGHEST].item()
        if lowest < -1 or highest >= columns:
            raise ValueError(
                f"target must be in [-1, {columns}), the columns of all ranks, got "
                f"{lowest if lowest < -1 else highest} on rank {rank} of process group "
                f"{group.name!r}"
            )


def _fake(
    like: Tensor, target: Tensor | None, sizes: Sequence[int], columns: int, text: str,
    has_diagonal: bool, is_ring: bool, name: str, ranks: int, backend: str,
) -> Tensor:  # fmt: skip
    # The shape follows from the arguments alone: torch finds compiled code again by these, in runs
    # of other numbers of ranks too.
    return like.new_empty((ranks, len(sizes) + LAST), dtype=torch.int64, device="cpu")


define(
    "agree_on_shards",
    "(Tensor like, Tensor? target, SymInt[] sizes, SymInt columns, str text, "
    "bool has_diagonal, bool is_ring, str group, int ranks, str backend) -> Tensor",
    fake=_fake,
    run=lambda backend, *arguments: agree(*arguments[:-1]),
    flops=no_flops,
)


def call(
    like: Tensor, target: Tensor | None, sizes: Sequence[int], columns: int, text: str,
    has_diagonal: bool, is_ring: bool, group: str, ranks: int,
) -> Tensor:  # fmt: skip
    """`agree`, as an op that torch.compile keeps in its graph; of so many ranks."""
    found: Tensor = torch.ops.mmcore.agree_on_shards(
        like.detach(), target, list(sizes), columns, text, has_diagonal, is_ring, group, ranks,
        "reference",
    )  # fmt: skip
    return found
