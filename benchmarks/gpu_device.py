"""The device that is measured: a GPU, or in its place a CPU with Triton's interpreter.

The interpreter proves that everything runs. Its times mean nothing, and it has no memory of its own
to count.
"""

import gc
import re
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity

# Written before every timed call, and several times larger than any L2.
LEAST_EVICTION_BYTES = 256 * 2**20


class DeviceLostError(RuntimeError):
    """A kernel has broken the GPU's context: nothing more can run in this process."""


@dataclass(frozen=True)
class CallTime:
    """One call: from its first instruction to its last kernel, and what the host needed of it."""

    time_ms: float
    host_ms: float


class Gpu:
    """The current CUDA or ROCm device."""

    name = "cuda"
    kind = "gpu"
    profiled_activity = ProfilerActivity.CUDA
    profiled_type = DeviceType.CUDA

    def __init__(self) -> None:
        self.properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        size = max(LEAST_EVICTION_BYTES, 4 * getattr(self.properties, "L2_cache_size", 0))
        self._evicting = torch.empty(size, dtype=torch.int8, device=self.name)

    def slug(self) -> str:
        """For example nvidia-h100-80gb-hbm3: the GPU's key in results, and its file's name."""
        name = torch.cuda.get_device_name()
        return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")

    def description(self) -> dict[str, object]:
        """What result lines say of the GPU."""
        return {
            "device": self.kind,
            "machine": self.slug(),
            "processor": torch.cuda.get_device_name(),
            "instruction_set": f"{self.properties.major}.{self.properties.minor}",
            "cores": self.properties.multi_processor_count,
            "memory_mib": self.properties.total_memory // 2**20,
            "toolkit": f"{'HIP' if torch.version.hip else 'CUDA'} {self._toolkit()}",
        }

    @staticmethod
    def _toolkit() -> str:
        return torch.version.hip or torch.version.cuda or "unknown"

    def time(self, action: Callable[[], object]) -> CallTime:
        """From an idle GPU with a cold L2: launches count as much as they are felt."""
        self._evicting.zero_()
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin = time.perf_counter()
        start.record()
        result = action()
        stop.record()
        host_ms = (time.perf_counter() - begin) * 1e3
        stop.synchronize()
        del result
        return CallTime(start.elapsed_time(stop), host_ms)

    def synchronize(self) -> None:
        """Wait for every kernel."""
        torch.cuda.synchronize()

    def check(self) -> None:
        """Raise DeviceLostError where the last failure took the whole context with it."""
        try:
            torch.cuda.synchronize()
        except RuntimeError as error:
            raise DeviceLostError(first_line(error)) from error

    def free(self) -> None:
        """Give back what nobody holds."""
        gc.collect()
        torch.cuda.empty_cache()

    def allocation_retries(self) -> int:
        """How often the allocator had to give cached memory back before it could serve."""
        return torch.cuda.memory_stats().get("num_alloc_retries", 0)

    def allocated_bytes(self) -> int:
        """In tensors now."""
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> None:
        """Let the peak start from now."""
        torch.cuda.reset_peak_memory_stats()

    def peak_bytes(self) -> int:
        """The most in tensors since then."""
        return torch.cuda.max_memory_allocated()


class Interpreter:
    """CPU tensors with Triton's interpreter."""

    name = "cpu"
    kind = "interpreter"
    profiled_activity = ProfilerActivity.CPU
    profiled_type = DeviceType.CPU

    def slug(self) -> str:
        """No machine that figures belong to."""
        return "triton-interpreter"

    def description(self) -> dict[str, object]:
        """What keeps its lines apart from those of machines."""
        return {"device": self.kind, "machine": self.slug(), "processor": "Triton's interpreter"}

    def time(self, action: Callable[[], object]) -> CallTime:
        """Wall time, which is the host's."""
        begin = time.perf_counter()
        action()
        time_ms = (time.perf_counter() - begin) * 1e3
        return CallTime(time_ms, time_ms)

    def synchronize(self) -> None:
        """Nothing runs on its own."""

    def check(self) -> None:
        """A failure leaves nothing behind."""

    def free(self) -> None:
        """Let go of cycles."""
        gc.collect()

    def allocation_retries(self) -> int:
        """None are counted."""
        return 0

    def allocated_bytes(self) -> int:
        """Nothing is counted."""
        return 0

    def reset_peak(self) -> None:
        """Nothing is counted."""

    def peak_bytes(self) -> int:
        """Nothing is counted."""
        return 0


Device = Gpu | Interpreter


def first_line(error: BaseException) -> str:
    """An error in one line of at most 160 characters."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"[:160]
