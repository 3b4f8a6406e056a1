"""A Hopper GPU that is not there: Triton launches as ever, down to a libcuda that records.

Tensors stay in the CPU's memory, no kernel runs, and so no value means anything. For a process of
its own, without TRITON_INTERPRET: `install()` comes before the first launch.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

import torch
from triton.backends.nvidia.driver import CudaDriver
from triton.runtime import driver

from mmcore.backends import triton
from mmcore.backends.triton.hopper import launch

SOURCE = Path(__file__).with_name("stub_libcuda.c")
FOLDER = SOURCE.parents[1] / "build" / "stub"
PROCESSORS = 132


def build() -> Path:
    """The folder with libcuda.so.1, compiled again where its source is newer."""
    library = FOLDER / "libcuda.so.1"
    if not library.exists() or library.stat().st_mtime < SOURCE.stat().st_mtime:
        FOLDER.mkdir(parents=True, exist_ok=True)
        unfinished = FOLDER / f"libcuda.{os.getpid()}"
        options = ["-O2", "-Wall", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1"]
        subprocess.run(["cc", *options, SOURCE, "-o", unfinished], check=True)
        unfinished.replace(library)
    link = FOLDER / "libcuda.so"
    if not link.is_symlink():
        link.unlink(missing_ok=True)
        link.symlink_to(library.name)
    return FOLDER


class Stub:
    """The driver that records, and the stream that torch says is the current one."""

    stream = 7

    def __init__(self, folder: Path) -> None:
        # Global, so that whoever opens libcuda.so.1 afterwards finds this one.
        self._library = ctypes.CDLL(str(folder / "libcuda.so.1"), mode=ctypes.RTLD_GLOBAL)
        self._library.stub_text.restype = ctypes.c_char_p
        self._library.stub_launches.restype = ctypes.c_long

    def record(self, on: bool = True) -> None:
        """Forgets what was recorded, and records from now on, or no longer."""
        self._library.stub_record(on)

    def lines(self) -> list[str]:
        """What was recorded."""
        return self._library.stub_text().decode().splitlines()

    def launches(self) -> int:
        """Since the process began, recorded or not."""
        return int(self._library.stub_launches())

    def let_launches_return(self, result: int) -> None:
        """0 for success."""
        self._library.stub_let_launches_return(result)

    def set_version(self, version: int) -> None:
        """Of the driver: 13010 for 13.1."""
        self._library.stub_set_version(version)

    def set_context(self, which: int) -> None:
        """The current one, of two."""
        self._library.stub_set_context(which)


def install() -> Stub:
    """Triton's launches and mmcore's choices of kernels are those of a Hopper GPU from now on."""
    folder = build()
    os.environ["TRITON_LIBCUDA_PATH"] = str(folder)
    stub = Stub(folder)

    torch.set_num_threads(1)
    torch.cuda.get_device_capability = lambda *_: (9, 0)
    torch.cuda.current_device = lambda: 0
    torch.cuda.is_available = lambda: False
    torch._C._cuda_getCurrentRawStream = lambda _: stub.stream
    driver.set_active(CudaDriver())
    triton.obstacle = lambda _: None
    launch.processors = lambda _: PROCESSORS
    return stub
