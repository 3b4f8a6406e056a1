"""The processes of a run: each trains on its share of every batch, the first one does the rest.

torchrun starts them. Without it there is one, and nothing here does anything.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

Result = TypeVar("Result")


def join() -> None:
    """Meets the other processes where torchrun has started several."""
    if dist.is_available() and dist.is_torchelastic_launched() and os.environ["WORLD_SIZE"] != "1":
        dist.init_process_group("gloo")


def leave() -> None:
    """From here on this process is alone."""
    if are_several():
        dist.destroy_process_group()


def are_several() -> bool:
    """Whether other processes train too."""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Whether this process evaluates, prints and writes files."""
    return not are_several() or dist.get_rank() == 0


def group() -> str | None:
    """What the losses take as `process_group`."""
    return "world" if are_several() else None


def share(rows: int) -> slice:
    """The rows of a batch that this process encodes; shares differ by one row at most."""
    if not are_several():
        return slice(0, rows)
    rank, count = dist.get_rank(), dist.get_world_size()
    return slice(rows * rank // count, rows * (rank + 1) // count)


def require_rows(batch_size: int) -> None:
    """Ends the program where a process would have no row."""
    if are_several() and batch_size < dist.get_world_size():
        raise SystemExit(
            f"the batch size must be at least the number of processes, {dist.get_world_size()}, "
            f"got {batch_size}"
        )


def from_first(compute: Callable[[], Result]) -> Result:
    """What `compute` returns in the first process, given to all; a SystemExit there ends all."""
    if not are_several():
        return compute()
    outcome: list[Any] = [None, None]
    if is_first():
        try:
            outcome[0] = compute()
        except SystemExit as exit_:
            outcome[1] = exit_
    dist.broadcast_object_list(outcome)
    result, exit_ = outcome
    if exit_ is not None:
        # One process says why; torchrun reports those that did not end with 0.
        raise exit_ if is_first() or exit_.code in (None, 0) else SystemExit(1)
    return result  # type: ignore[no-any-return]


def in_any(is_so: bool) -> bool:
    """Whether it is so in any process: the same answer in all of them."""
    if not are_several():
        return is_so
    found = torch.tensor(int(is_so))
    dist.all_reduce(found, dist.ReduceOp.MAX)
    return bool(found)


class SumOverProcesses(torch.autograd.Function):
    """The sum of a tensor over the processes, differentiable."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        total = x.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        dist.all_reduce(total)
        return total


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation by the mean and variance of the rows of all processes.

    nn.SyncBatchNorm would do, but runs on a GPU only. With one process this is nn.BatchNorm2d.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not (self.training and are_several()):
            return super().forward(x)
        mean, variance, count = moments_over_processes(x)
        with torch.no_grad():
            self.num_batches_tracked += 1
            self.running_mean.lerp_(mean.to(x.dtype), self.momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(x.dtype), self.momentum)
        factor = self.weight * (variance + self.eps).rsqrt()
        shift = self.bias - mean * factor
        factor, shift = (each.to(x.dtype)[:, None, None] for each in (factor, shift))
        return x * factor + shift


def moments_over_processes(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of every channel, and how many numbers a channel has; float64."""
    variance, mean = torch.var_mean(x, (0, 2, 3), correction=0)
    mean, variance = mean.double(), variance.double()
    count = mean.new_tensor([x.numel() / x.shape[1]])
    # In float64 the difference of squares below loses nothing that float32 had.
    sums = torch.cat([count * mean, count * (variance + mean.square()), count])
    total = SumOverProcesses.apply(sums)
    count = total[-1].detach()
    mean, square = (total[:-1] / count).chunk(2)
    return mean, square - mean.square(), count
