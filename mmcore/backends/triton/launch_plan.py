"""Launches of compiled kernels from C++, which take a fraction of the host's time of Triton's own.

`@planned` above `@triton.jit` or `@gluon.jit` leaves the calls of a kernel as they are. Triton
serves the first call of each kind: it compiles, launches, and returns the compiled kernel. A plan
keeps that kernel's handle and how its parameters are packed, and serves later calls of the same
kind; csrc/launch/ has the plans, and says which calls are of one kind.

Triton's own launcher serves everything else: calls under hooks or TRITON_DEBUG, kernels that need
scratch memory or a cooperative grid, arguments that no plan knows, AMD, and all calls
where the extension or libcuda is missing or MMCORE_LAUNCH_PLAN is 0. A plan does not repeat
Triton's check, at every launch, that global constants of kernels have kept their values.
"""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Hashable, Iterator
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, NotRequired, TypeAlias, TypedDict, TypeVar

import torch
from triton import knobs
from triton.language import constexpr
from triton.runtime import driver
from triton.runtime.jit import JITFunction
from triton.tools.tensor_descriptor import TensorDescriptor

if TYPE_CHECKING:
    from triton.compiler import CompiledKernel
    from triton.runtime.jit import KernelParam

try:
    import mmcore._launch as _launch  # its error names the module, as in cpu/module.py
except ImportError:
    _launch = None  # type: ignore[assignment]

K = TypeVar("K", bound=Hashable)
Box = tuple[int, int, int, tuple[int, ...]]  # swizzle, bytes of a number, its type, sides
Grid = tuple[int, ...]
Types: TypeAlias = str | tuple["Types", ...]
# Above these bytes of shared memory, or CTAs of a cluster, a launch would need further attributes.
MOST_SHARED, MOST_CTAS = 228 * 1024, 8
# What a launch would have to pass or allocate, by its name in a kernel's metadata.
NEEDS = (
    "global_scratch_size", "profile_scratch_size", "launch_cooperative_grid", "launch_pdl",
    "instrumentation_mode",
)  # fmt: skip


class BoxMetadata(TypedDict):
    """What Triton's compiler says of a descriptor."""

    swizzle: int
    elem_size: int
    elem_type: int
    block_size: list[int]
    fp4_padded: bool
    is_im2col: NotRequired[bool]


def planned(kernel: K) -> K:
    """The kernel, whose launches now go from C++ where a plan serves them."""
    is_wanted = _launch is not None and os.environ.get("MMCORE_LAUNCH_PLAN") != "0"
    if is_wanted and torch.version.hip is None and isinstance(kernel, JITFunction):
        base: type = type(kernel)
        kernel.__class__ = planned_class(base)
    return kernel


class PlannedKernel:
    """A kernel's class after `planned`: `kernel[grid]` is a launch by plan."""

    _bind: Callable[[Grid], Callable[..., object]] | None = None

    def __getitem__(self, grid: Grid) -> Callable[..., object]:
        if self._bind is None:
            has_driver = configure()
            triton = partial(JITFunction.__getitem__, self)
            self._bind = new_plans(self).bind if has_driver else triton
        return self._bind(grid)


@cache
def planned_class(base: type) -> type:
    """Triton's class of kernels, or Gluon's, whose launches go by plan."""
    return type(f"Planned{base.__name__}", (PlannedKernel, base), {})


@cache
def configure() -> bool:
    """Tells the extension the types of arguments; whether there is a driver."""
    from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor

    active = driver.active
    return _launch.configure(
        torch.Tensor, torch.nn.Parameter, torch.Tensor.data_ptr, constexpr,
        TensorDescriptor, GluonDescriptor,
        # torch.cuda.current_device() without its check that CUDA is initialised.
        getattr(torch._C, "_cuda_getDevice", active.get_current_device), active.get_current_stream,
        knobs.runtime, knobs.HookChain,
        hasattr(TensorDescriptor, "round_f32_to_tf32"),
        hasattr(GluonDescriptor, "round_f32_to_tf32"),
        mends_small_maps(),
    )  # fmt: skip


def mends_small_maps() -> bool:
    """Whether this Triton's launcher clears the bit that plan.cpp explains; 3.6 does not yet."""
    from triton.backends import nvidia

    return "1llu << 21" in Path(nvidia.__file__).with_name("driver.c").read_text()


def new_plans(kernel: JITFunction) -> _launch.Kernel:
    """No plan yet, and what makes one."""

    def by_triton(grid: Grid, *arguments: object, **constants: object) -> CompiledKernel | None:
        return kernel.run(*arguments, grid=grid, warmup=False, **constants)

    parameters = tuple(parameter(each) for each in kernel.params)
    return _launch.Kernel(parameters, by_triton, describe, kernel.pre_run_hooks)


def parameter(of: KernelParam) -> tuple[str, tuple[object, ...], bool, bool, bool]:
    """Its name, its default if it has one, and what Triton's compiler learns of its argument."""
    default = () if of.default is inspect.Parameter.empty else (of.default,)
    is_aligned = not of.do_not_specialize_on_alignment
    return of.name, default, of.is_constexpr, not of.do_not_specialize, is_aligned


def describe(
    compiled: CompiledKernel,
) -> tuple[int, int, int, int, str, tuple[str | Box, ...]] | None:
    """The handle, bytes of shared memory, warps, CTAs of a cluster, name, and the type of each
    number of a call.

    None where the kernel's launch takes more than that.
    """
    metadata = compiled.metadata
    warps, ctas, shared = compiled.packed_metadata
    if ctas > MOST_CTAS or shared > MOST_SHARED or metadata.target.backend != "cuda":
        return None
    if any(getattr(metadata, name, None) for name in NEEDS):
        return None
    types = list(flat(tuple(compiled.src.signature.values())))
    boxes = [box(each) for each in getattr(metadata, "tensordesc_meta", None) or ()]
    known = [each for each in boxes if each is not None]
    # Without boxes the kernel reads memory by a pointer in place of the descriptor.
    if not len(known) == len(boxes) == sum(name.startswith("tensordesc") for name in types):
        return None
    codes = tuple(known.pop(0) if name.startswith("tensordesc") else name for name in types)
    return compiled.function, shared, warps, ctas, compiled.name, codes


def flat(types: Types) -> Iterator[str]:
    """The types of a signature, whose groups are tuples."""
    if isinstance(types, str):
        yield types
    else:
        for each in types:
            yield from flat(each)


def box(metadata: BoxMetadata) -> Box | None:
    """How the copy engine cuts a matrix; None for the kinds that no plan knows."""
    if metadata["fp4_padded"] or metadata.get("is_im2col"):
        return None
    from triton.backends.nvidia import driver as nvidia

    kind = nvidia.TMA_DTYPE_DEVICE_TO_HOST[metadata["elem_type"]]
    return metadata["swizzle"], metadata["elem_size"], kind, tuple(metadata["block_size"])
