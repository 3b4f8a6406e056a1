"""Launches of compiled kernels; mmcore/backends/triton/launch_plan.py uses it."""

from collections.abc import Callable

class Kernel:
    def __init__(
        self,
        parameters: tuple[tuple[str, tuple[object, ...], bool, bool, bool], ...],
        by_triton: Callable[..., object],
        describe: Callable[..., object],
        hooks: list[Callable[..., object]],
    ) -> None: ...
    def bind(self, grid: tuple[int, ...]) -> Callable[..., object]: ...
    @property
    def planned(self) -> int: ...
    @property
    def plans(self) -> int: ...

def configure(
    tensor: type,
    parameter: type,
    data_ptr: object,
    constexpr_type: type,
    descriptor: type,
    gluon_descriptor: type,
    current_device: Callable[[], int],
    current_stream: Callable[[int], int],
    runtime: object,
    hook_chain: type,
    triton_rounds: bool,
    gluon_rounds: bool,
    mends_small_maps: bool,
) -> bool: ...
