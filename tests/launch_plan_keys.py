"""Plans asked for thousands of random calls, for launch_plan_reports.py: nothing is compiled.

In place of a compiled kernel stands Triton's own key of the call for which it was compiled.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import triton
from launch_plan_kernels import every_kind_kernel, other_values, usual
from triton.runtime.jit import JITFunction

from mmcore import _launch
from mmcore.backends.triton.launch_plan import configure, flat, parameter


class Key:
    """In place of a compiled kernel."""

    def __init__(self, kernel: JITFunction, call: dict[str, Any]) -> None:
        _, specialization, options = kernel.device_caches[0][4](**call)
        # As text, for which 1, 1.0 and True differ.
        self.key = str(specialization) + str(options)
        self.types = tuple(kind for kind, _ in specialization)


def plans_of_keys(kernel: JITFunction) -> _launch.Kernel:
    """Plans that take a Key for a compiled kernel; their launches reach the driver."""

    def describe(key: Key) -> tuple[Any, ...]:
        return 1, 0, 4, 1, "none", tuple(flat(key.types))

    def by_triton(grid: Any, **call: Any) -> Key:
        return Key(kernel, call)

    return _launch.Kernel(tuple(map(parameter, kernel.params)), by_triton, describe, [])


def random_keys(calls: int) -> dict[str, Any]:
    """Calls that were served by a kernel which Triton would not take for them."""
    options = {"do_not_specialize": ["whole"], "do_not_specialize_on_alignment": ["unaligned"]}
    kernel = triton.jit(every_kind_kernel.fn, **options)
    configure()
    plans = plans_of_keys(kernel)
    pool: dict[str, list[Any]] = {name: [value] for name, value in usual().items()}
    pool |= {"KIND": ["sum"], "num_warps": [4]}
    for name, value in other_values():
        pool[name].append(value)
    draw = random.Random(0)
    wrong = []
    for _ in range(calls):  # few arguments are changed, so that many calls are of one kind
        changed = draw.sample(sorted(pool), 2)
        call = usual() | {name: draw.choice(pool[name]) for name in changed}
        launch: Callable[..., Any] = plans.bind((1,))
        wrong += [repr(call) for _ in range(2) if launch(**call).key != Key(kernel, call).key]
    return {"wrong": wrong, "planned": plans.planned, "calls": 2 * calls}
