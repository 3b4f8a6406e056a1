"""Which machine serves a call: the choice, the fallback, and the words for both."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType

import torch
from torch import Tensor

from mmcore.backends import cpu, triton, workspace
from mmcore.backends.cpu import kept_size as cpu_kept_size
from mmcore.backends.triton import kept_size as triton_kept_size
from mmcore.tracing import is_recomputed_by_checkpoint

NAMES = ("auto", "reference", "cpu", "triton")
COMPILED = {"cpu": cpu, "triton": triton}
KEPT_SIZES: dict[str, ModuleType] = {"cpu": cpu_kept_size, "triton": triton_kept_size}


class FallbackWarning(UserWarning):
    """A compiled backend was expected and could not serve; the reference does the work instead."""


def check_name(name: str, argument: str = "backend") -> str:
    """Returns `name` if it is a backend's; raises ValueError otherwise."""
    if name not in NAMES:
        raise ValueError(f"{argument} must be one of {', '.join(NAMES)}, got {name!r}")
    return name


# A plain global: torch.compile guards on it, so that compiled code follows the block it runs in.
_selected = check_name(os.environ.get("MMCORE_BACKEND", "auto"), "MMCORE_BACKEND")
_reported: set[str] = set()


@contextmanager
def backend(name: str) -> Iterator[None]:
    """Selects the implementation for every call inside the block, in the whole process.

    The forward decides: a backward runs where its forward ran, inside the block or not. A
    ``backend=`` argument beats the block, the block beats the environment variable
    MMCORE_BACKEND, and that beats ``"auto"``.

    What `torch.utils.checkpoint` computes again is a forward of its own, at the time of the
    backward. To have it served by the same backend, put the backward into the block as well, or
    enter the block inside of what is checkpointed: a block is a decorator too, as in
    ``checkpoint(mmcore.backend("reference")(layer), x, use_reentrant=False)``.

    Args:
        name: ``"auto"`` takes the compiled kernels where they serve the tensors' device and dtype,
            and the reference otherwise; ``"reference"`` is plain PyTorch, for every device and
            dtype; ``"cpu"`` is the compiled CPU kernels and ``"triton"`` those for GPUs, or an
            error that says why not.

    Raises:
        ValueError: `name` is none of these.

    Example:
        >>> import torch, mmcore
        >>> x = torch.randn(8, 16)
        >>> with mmcore.backend("reference"):
        ...     y = mmcore.functional.l2_normalize(x)
        >>> torch.allclose(y, mmcore.functional.l2_normalize(x))
        True
    """
    global _selected
    outer, _selected = _selected, check_name(name)
    try:
        yield
    finally:
        _selected = outer


def selected(argument: str | None) -> str:
    """The backend asked for: by argument, else by block, else by MMCORE_BACKEND."""
    return _selected if argument is None else check_name(argument)


def choose(requested: str, x: Tensor) -> str:
    """The backend that serves `x`: the one requested, or for "auto" the best that can."""
    if requested == "reference" or x.is_meta:
        return "reference"  # of meta tensors nothing is computed, and no kernel has to serve them
    best = "cpu" if x.device.type == "cpu" else "triton"
    name = best if requested == "auto" else requested
    obstacle = COMPILED[name].obstacle(x)
    if obstacle is None:
        return name
    if requested != "auto":
        raise RuntimeError(f"backend '{name}' cannot serve this call: {obstacle}")
    # float64 has no kernels by design: it exists to check gradients and to be an oracle.
    if x.dtype != torch.float64:
        _report_fallback(obstacle)
    return "reference"


@cache
def implementation(name: str, family: str) -> ModuleType:
    """The backend's file of an op family; the reference's where it has none."""
    module = f"{__name__}.{name}.{family}"
    if not has_file(name, family):
        module = f"{__name__}.reference.{family}"
    return import_module(module)


def has_file(name: str, family: str) -> bool:
    """Whether a backend has a file, or a folder, of an op family."""
    return find_spec(f"{__name__}.{name}.{family}") is not None


def kept_size(requested: str, family: str, inputs: tuple[object, ...]) -> int:
    """How many float32 numbers the backend that serves a call keeps for its backward."""
    if is_recomputed_by_checkpoint():
        return 0
    first = first_tensor(inputs)
    name = choose(requested, first)
    size = None if name == "reference" else getattr(KEPT_SIZES[name], family, None)
    return 0 if size is None else size(workspace.current(first.device.type), inputs)


def first_tensor(values: Sequence[object]) -> Tensor:
    """The first value, or its first element if it is a list; it decides which backend serves."""
    first = values[0]
    if not isinstance(first, Tensor):
        assert isinstance(first, Sequence)
        first = first[0]
        assert isinstance(first, Tensor)
    return first


def _report_fallback(obstacle: str) -> None:
    message = f"mmcore falls back to its reference backend, which is slower: {obstacle}"
    if os.environ.get("MMCORE_STRICT", "0") not in ("", "0"):
        raise RuntimeError(f"{message} (an error because MMCORE_STRICT is set)")
    if obstacle not in _reported:
        _reported.add(obstacle)
        warnings.warn(message, FallbackWarning, stacklevel=2)
