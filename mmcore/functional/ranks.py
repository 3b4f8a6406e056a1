"""The processes whose rows a call compares: the argument process_group, and sums over them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, NamedTuple, ParamSpec, TypeAlias, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from mmcore.functional.options import check_choice
from mmcore.ops.precision import current_autocast
from mmcore.ops.sharded import fetched_rows, header, sums
from mmcore.ops.sharded.collectives import device_of
from mmcore.tracing import constant_when_compiled

GRADIENTS = ("mean", "sum")
EXCHANGES = ("auto", "gather", "ring")
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
# "world", a ProcessGroup, a DeviceMesh of one dimension, or None. Of no type of torch's: the
# module of DeviceMesh takes long to import.
ProcessGroup: TypeAlias = Any


class Ranks(NamedTuple):
    """The processes of a group, and the convention of gradients."""

    group: str  # its name
    rank: int
    size: int
    factor: float  # of gradients of a value that is the same on all ranks
    is_ring: bool

    def device(self) -> torch.device:
        """Where the group's backend exchanges tensors: the CPU, where it can."""
        return device_of(self.group)

    def total(self, value: Tensor) -> Tensor:
        """Σ over ranks, of which all compute the same number: see ops/sharded/sums.py."""
        return sums.replicated(value, self.group, self.factor)

    def shared(self, value: Tensor) -> Tensor:
        """Σ over ranks, of which each computes its own numbers."""
        return sums.shared(value, self.group)

    def each(self, value: Tensor) -> Tensor:
        """(W,) the 0-D value of every rank; the gradient as of `total`."""
        is_own = torch.arange(self.size, device=value.device) == self.rank
        return self.total(torch.where(is_own, value, 0.0))

    def of_first(self, value: Tensor) -> Tensor:
        """Rank 0's value, of integers, on every rank."""
        own = value.double() if self.rank == 0 else value.new_zeros(value.shape).double()
        return self.total(own).to(value.dtype)

    def agree(
        self, function: str, tensors: Mapping[str, Tensor | None], *, sizes: Mapping[str, int],
        target: Tensor | None = None, columns: str | None = None, has_diagonal: bool = False,
        **options: object,
    ) -> Tensor:  # fmt: skip
        """Compares what the ranks were given; (W, sizes + 3), the sizes of every rank first.

        `columns` names the size that counts what `target` numbers, or what has a diagonal.
        """
        like = next(value for value in tensors.values() if value is not None)
        lines = [f"the function: {function}"]
        lines += [f"{name}: {_described(value)}" for name, value in tensors.items()]
        options["exchange"] = "ring" if self.is_ring else "gather"
        options["the dtype of autocast"] = current_autocast(like)
        lines += [f"{name}: {value!r}" for name, value in options.items()]
        place = 0 if columns is None else list(sizes).index(columns)
        text = "\n".join(lines)
        counts = list(sizes.values())
        return header.call(
            like, target, counts, place, text, has_diagonal, self.is_ring, self.group, self.size
        )

    def rows(self, function: str, **sides: Tensor) -> tuple[Rows, ...]:
        """How many rows of each tensor every rank has; compares what the ranks were given."""
        sizes = {name: side.shape[0] for name, side in sides.items()}
        agreed = self.agree(function, sides, sizes=sizes)
        return tuple(Rows(agreed[:, i], self) for i in range(len(sides)))


class Rows(NamedTuple):
    """Rows that are spread over ranks."""

    counts: Tensor  # (W,) int64, on the CPU
    ranks: Ranks

    def offset(self, device: torch.device) -> Tensor:
        """The number of this rank's first row among those of all ranks, 0-D."""
        return self.counts[: self.ranks.rank].sum().to(device)

    def total(self, device: torch.device) -> Tensor:
        """How many all ranks have, 0-D float64."""
        return self.counts.sum().to(device, torch.float64)

    def numbers(self, x: Tensor) -> Tensor:
        """Those of the rows of `x` among the rows of all ranks."""
        return torch.arange(x.shape[0], device=x.device) + self.offset(x.device)

    def gathered(self, values: Tensor) -> Tensor:
        """A number for each row, of all ranks; without a gradient."""
        return sums.gathered(values, self.counts, self.ranks.group)

    def at(self, side: Tensor, numbers: Tensor) -> Tensor:
        """The rows of these numbers, of whatever ranks hold them; zeros for −1."""
        return fetched_rows.call(side, numbers, self.counts, self.ranks.group)


def as_ranks(
    process_group: ProcessGroup, gradients: str = "mean", exchange: str = "auto"
) -> Ranks | None:
    """The processes of the group; None where this process computes for itself.

    An objective hands on what it got from here in place of the group.
    """
    if isinstance(process_group, Ranks):
        return process_group
    check_choice("gradients", gradients, GRADIENTS)
    check_choice("exchange", exchange, EXCHANGES)
    if process_group is None:
        return None
    name, rank, size = _group_facts(process_group)
    if size == 1:
        return None
    factor = float(size) if gradients == "mean" else 1.0
    return Ranks(name, rank, size, factor, exchange == "ring")


def handed_on(process_group: ProcessGroup, gradients: str, exchange: str) -> dict[str, Any]:
    """The arguments of an objective that is called by another; none where there is no group."""
    if process_group is None:
        return {}
    return {"process_group": process_group, "gradients": gradients, "exchange": exchange}


@constant_when_compiled
def _group_facts(process_group: ProcessGroup) -> tuple[str, int, int]:
    """Its name, this process's rank in it, and its size."""
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError(
            "process_group must be None where torch.distributed is not initialised: call "
            "torch.distributed.init_process_group first"
        )
    if isinstance(process_group, str) and process_group == "world":
        process_group = dist.group.WORLD
    elif hasattr(process_group, "mesh_dim_names"):
        if process_group.ndim != 1:
            raise ValueError(
                f"process_group must be a DeviceMesh of 1 dimension, got {process_group.ndim}: "
                "choose one by its name, such as mesh['data']"
            )
        process_group = process_group.get_group()
    if process_group is dist.GroupMember.NON_GROUP_MEMBER:
        raise ValueError(
            f"process_group must be one that this process, of global rank {dist.get_rank()}, is in"
        )
    if not isinstance(process_group, dist.ProcessGroup):
        raise TypeError(
            "process_group must be None, 'world', a ProcessGroup or a DeviceMesh, got "
            f"{process_group!r}"
        )
    rank = dist.get_rank(process_group)
    if rank < 0:
        raise ValueError(
            f"process_group must be one that this process, of global rank {dist.get_rank()}, is in"
        )
    return process_group.group_name, rank, dist.get_world_size(process_group)


def tells_ranks(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """The function, which tells the other ranks where it refuses its arguments.

    They wait in its first comparison of arguments, and raise an error in their turn.
    """

    @wraps(function)
    def call(*arguments: Parameters.args, **by_name: Parameters.kwargs) -> Result:
        process_group = by_name.get("process_group")
        if process_group is None or isinstance(process_group, Ranks):
            return function(*arguments, **by_name)
        if torch.compiler.is_compiling():
            return function(*arguments, **by_name)
        name, _, size = _group_facts(process_group)
        before = header.calls(name)
        try:
            return function(*arguments, **by_name)
        except (TypeError, ValueError) as error:
            if size > 1 and header.calls(name) == before:
                header.refuse(name, function.__name__, error, _device(arguments, by_name))
            raise

    return call


def _device(arguments: tuple[object, ...], by_name: Mapping[str, object]) -> torch.device:
    for value in (*arguments, *by_name.values()):
        if isinstance(value, Tensor):
            return value.device
    return torch.get_default_device()


def _described(value: Tensor | float | None) -> str:
    """What has to be the same on all ranks."""
    if value is None:
        return "None"
    if not isinstance(value, Tensor):
        return "a number"
    gradient = "with" if value.requires_grad and torch.is_grad_enabled() else "without"
    width = f"{value.shape[1]} columns, " if value.ndim == 2 else ""
    return f"{width}{str(value.dtype).removeprefix('torch.')}, {gradient} a gradient"
