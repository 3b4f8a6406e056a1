"""A GPU that is not there: torch's meta tensors for memory, nothing for kernels.

Launch code runs as on the device, at any size. What would have to wait for the device raises,
because a meta tensor has no values; so do tensors left on the CPU; and every tensor's memory is
counted while it lives.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from triton.runtime.interpreter import InterpretedFunction
from triton.runtime.jit import JITFunction

from mmcore.backends.triton import hopper, inputs, launch
from mmcore.backends.triton.hopper import launch as hopper_launch
from mmcore.backends.triton.launch_plan import PlannedKernel
from mmcore.backends.triton.softmax_similarity import matrix

HOPPER, PROCESSORS = (9, 0), 132


class Memory(TorchDispatchMode):
    """Counts the bytes of storages from their first tensor to their last; refuses CPU tensors."""

    def __init__(self, *given: torch.Tensor | None) -> None:
        """`given` is there anyway, and not counted."""
        super().__init__()
        self.now, self.peak = 0, 0
        self._known = {each.untyped_storage()._cdata for each in given if each is not None}

    def __torch_dispatch__(
        self, function: Any, types: Any, arguments: Any = (), options: Any = None
    ) -> Any:
        result = function(*arguments, **(options or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                assert leaf.device.type == "meta", f"{function} gives a tensor on {leaf.device}"
                self._see(leaf.untyped_storage())
        return result

    def _see(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self.now -= size


class Launches(list[tuple[str, tuple[int, ...]]]):
    """The kernels that were launched, with their grids."""

    def names(self) -> list[str]:
        """Without the grids."""
        return [name for name, _ in self]


def skip_without_products() -> None:
    """Before 2.12 torch cannot add a product with sums of another dtype up on a meta tensor."""
    total, a = torch.empty(2, 2, device="meta"), torch.empty(2, 2, device="meta").bfloat16()
    try:
        torch.addmm(total, a, a, out_dtype=torch.float32, beta=1, out=total)
    except TypeError:
        pytest.skip("this torch adds no products up on meta tensors")


@contextmanager
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[Launches]:
    """Tensors made inside are on a Hopper GPU that does nothing."""
    skip_without_products()
    launches = Launches()

    def launch_nothing(self: InterpretedFunction | JITFunction | PlannedKernel, grid: Any) -> Any:
        assert grid[0] < 2**31, "the first axis of a grid has 31 bits"
        assert all(size < 2**16 for size in grid[1:]), "the others have 16"
        return lambda *_, **__: launches.append((self.fn.__name__, tuple(grid)))

    with monkeypatch.context() as patch:
        for kernel in (InterpretedFunction, JITFunction, PlannedKernel):
            patch.setattr(kernel, "__getitem__", launch_nothing, raising=False)
        for module in (launch, inputs, hopper):
            patch.setattr(module, "is_interpreted", lambda: False)
        for module in (launch, hopper_launch):
            patch.setattr(module, "processors", lambda _: PROCESSORS)
        patch.setattr(matrix, "_recipes", {})
        patch.setattr(inputs, "is_aligned", lambda _: True)
        patch.setattr(torch.cuda, "get_device_capability", lambda _: HOPPER)
        patch.setattr(torch.cuda, "device_of", lambda _: nullcontext())
        with torch.device("meta"):
            yield launches
