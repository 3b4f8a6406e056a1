"""Threads as ranks: torch's process group of threads, which is private to torch's own tests.

Each rank is a thread of this process; its collectives copy between threads. It has no
point-to-point communication. torch checks its own wrappers with it, at any number of ranks and at
hardly any cost.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.testing._internal.distributed import multi_threaded_pg as threaded

SECONDS = 60


def on_ranks(size: int, function: Callable[[int], Any]) -> list[Any]:
    """What the function returns on each of so many ranks; the first error is raised here."""
    found: list[Any] = [None] * size
    errors: dict[int, BaseException] = {}
    default_dtype, store = torch.get_default_dtype(), dist.HashStore()

    def work(rank: int) -> None:
        try:
            dist.init_process_group("threaded", rank=rank, world_size=size, store=store)
            found[rank] = function(rank)
            dist.barrier()
        except BaseException as error:
            errors[rank] = error
            threaded.ProcessLocalGroup.exception_handle(error)
        finally:
            if dist.is_initialized():
                dist.destroy_process_group()

    threaded._install_threaded_pg()
    torch._C._distributed_c10d._set_thread_isolation_mode(True)
    try:
        threads = [threading.Thread(target=work, args=(rank,), daemon=True) for rank in range(size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(SECONDS)
            assert not thread.is_alive(), "a rank hangs"
    finally:
        torch._C._distributed_c10d._set_thread_isolation_mode(False)
        threaded.ProcessLocalGroup.reset()
        threaded._uninstall_threaded_pg()
        torch.set_default_dtype(default_dtype)
    causes = [error for error in errors.values() if not isinstance(error, SystemExit)]
    if causes:
        raise causes[0]
    assert not errors
    return found
