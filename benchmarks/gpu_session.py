"""What every measurement on a GPU needs: device, recorder, providers, roofs, and the time left."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import torch

from cases import Case
from gpu_device import CallTime, Device, DeviceLostError, first_line
from inputs import Mode
from measure import Function, call
from providers.on_gpu import PRODUCT_ALONE, gpu_providers
from providers.provider import Built, Provider
from recorder import Measured, Recorder


@dataclass(frozen=True)
class Rounds:
    """How many interleaved rounds a case gets: as many as fit its time, within bounds."""

    fewest: int
    most: int
    budget_s: float


@dataclass
class Session:
    """One run of the benchmark."""

    device: Device
    recorder: Recorder
    rounds: Rounds
    deadline: float
    without: tuple[str, ...] = ()
    # Dtype and float32 precision → GFLOP/s of a large product; what is missing was not measured.
    roofs: dict[tuple[str, str], float] = field(default_factory=dict)

    def seconds_left(self) -> float:
        """Until nothing new is begun."""
        return self.deadline - time.monotonic()

    def providers(self, op: str, names: tuple[str, ...] = ()) -> list[Provider]:
        """The providers of an operation that are wanted; no names are all that compute it."""
        return [
            each
            for each in gpu_providers(self.device, self.time_ms)
            if each.op == op
            and each.name not in self.without
            and (each.name in names if names else each.name != PRODUCT_ALONE)
        ]

    def time_ms(self, function: Function, case: Case, mode: Mode, seed: int) -> float:
        """One call, for providers that look for their fastest settings."""
        return self.time_call(Built(function), case, mode, seed).time_ms

    def time_call(self, built: Built, case: Case, mode: Mode, seed: int) -> CallTime:
        """One call on inputs that nobody has seen."""
        inputs = case.make_inputs(seed, self.device.name)
        upstream = case.make_output_gradient(seed, self.device.name)

        def action() -> object:
            with workspace_of(built):
                return call(built.function, inputs, upstream, mode)

        return self.device.time(action)

    def attempt(self, name: str, action: Callable[[], str | None]) -> str | None:
        """What `action` returns, or in one line how it failed; memory is given back either way."""
        try:
            reason = action()
        except DeviceLostError:
            raise
        # A rival may fail in any way whatever, and must not stop the others.
        except Exception as error:
            reason = first_line(error)
        try:
            self.device.check()
        except DeviceLostError as error:
            raise DeviceLostError(f"{name} has broken the GPU's context: {error}") from error
        self.device.free()
        return reason

    def record(
        self, kind: str, provider: str, case: Measured, figures: Mapping[str, object]
    ) -> None:
        """One measurement; lines of float32 say how its products may be rounded."""
        precision = {}
        if case.dtype == "float32":
            precision = {"precision": torch.get_float32_matmul_precision()}
        self.recorder.record(kind, provider, case, {**figures, **precision})

    def skip(self, kind: str, provider: str, case: Case, mode: Mode, reason: str) -> None:
        """A line that says why there are no figures."""
        self.record(kind, provider, case, {"mode": mode, "skipped": reason})


def workspace_of(built: Built) -> AbstractContextManager[None]:
    """mmcore's workspace of a provider, to be in force over forward and backward."""
    if built.workspace is None:
        return nullcontext()
    import mmcore

    return mmcore.workspace(built.workspace)


@contextmanager
def float32_precision(precision: str) -> Iterator[None]:
    """How float32 products may be rounded, for a block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
