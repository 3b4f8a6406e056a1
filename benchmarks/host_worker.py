"""Steps, timed in a process of their own over a libcuda that does nothing (host.py starts it).

Reads lines of JSON: a case and a number of steps; answers with as many times in microseconds. The
tensors are on the CPU. torch and Triton do all that they do for a GPU, down to the driver's
functions, which are those of tests/stub_libcuda.c.
"""

import ctypes
import gc
import json
import os
import sys
import time
import warnings
from types import SimpleNamespace

import torch

from host_steps import CASES, Inputs, Step, of_mmcore, of_torch, step

WARM_UP = 3
PROCESSORS = 132


def pretend_gpu(libcuda: str) -> None:
    """The active driver of Triton is CUDA's, of a Hopper GPU; `backend="triton"` serves the CPU.

    By names that every commit since 9efbf71 has.
    """
    warnings.filterwarnings("ignore", module="triton")
    ctypes.CDLL(libcuda, mode=ctypes.RTLD_GLOBAL)  # whoever opens libcuda.so.1 now gets this one
    properties = SimpleNamespace(multi_processor_count=PROCESSORS)
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch._C._cuda_getCurrentRawStream = lambda device: 7
    from triton.backends.nvidia.driver import CudaDriver
    from triton.runtime import driver

    driver.set_active(CudaDriver())
    from mmcore.backends import triton as backend

    backend.obstacle = lambda x: None


def time_steps(run: Step, inputs: Inputs, count: int) -> list[float]:
    """The processor time of this thread, in microseconds, for each step."""
    times = []
    gc.collect()
    gc.disable()
    for i in range(WARM_UP + count):
        begin = time.thread_time_ns()
        run()
        end = time.thread_time_ns()
        inputs.forget_gradients()
        if i >= WARM_UP:
            times.append((end - begin) / 1e3)
    gc.enable()
    return times


def main(provider: str, libcuda: str) -> None:
    """Serve until there are no more requests."""
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)  # kernels that do nothing leave whatever was in memory
    if provider == "torch":
        functions = of_torch()
    else:
        pretend_gpu(libcuda)
        functions = of_mmcore()
    inputs = Inputs()
    steps = {case.title: step(case, inputs, functions) for case in CASES}
    gc.freeze()
    for line in sys.stdin:
        title, count = json.loads(line)
        print(json.dumps(time_steps(steps[title], inputs, count)), flush=True)
    os._exit(0)  # without the words of Triton's bindings about what they have not freed


if __name__ == "__main__":
    main(*sys.argv[1:])
