"""The compiled module: whether it is there, what it serves, which instruction set it uses."""

from __future__ import annotations

import os

import torch
from torch import Tensor

from mmcore.tracing import constant_when_compiled

try:
    import mmcore._C as _C  # its error names the module, where `from mmcore` guesses at circles

    missing_module: str | None = None
except ImportError as error:
    _C = None  # type: ignore[assignment]
    missing_module = str(error)

__all__ = [
    "_C",
    "has_matrix_unit",
    "instruction_sets",
    "measure_peak",
    "missing_module",
    "obstacle",
    "obstacle_to_matrix_unit",
]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def _lower_instruction_set(name: str) -> None:
    if not _C.select_instruction_set(name):
        available = ", ".join(_C.instruction_sets())
        reason = f": {_C.obstacle_to_matrix_unit()}" if name == "amx" else ""
        raise ValueError(
            f"MMCORE_CPU_ISA must be one that was built and that this processor has "
            f"({available}), got {name!r}{reason}"
        )


if _C is not None and os.environ.get("MMCORE_CPU_ISA"):
    _lower_instruction_set(os.environ["MMCORE_CPU_ISA"])


def obstacle(x: Tensor) -> str | None:
    """Why the CPU kernels cannot serve `x`; None where they can."""
    if missing_module is not None:
        return (
            f"the compiled module mmcore._C could not be imported ({missing_module}); "
            "`python -m mmcore` says how to get it"
        )
    if x.device.type != "cpu":
        return f"the tensors are on {x.device.type}, and only the CPU has compiled kernels"
    if x.dtype not in DTYPES:
        return f"the CPU kernels take float32, bfloat16 and float16, got {_dtype_name(x.dtype)}"
    return None


def instruction_sets() -> list[str]:
    """The instruction sets that were built and that this processor has, the one in use first."""
    if missing_module is not None:
        return []
    return sorted(_C.instruction_sets(), key=lambda name: name != _C.instruction_set())


def obstacle_to_matrix_unit() -> str | None:
    """Why the matrix unit of the processor, AMX, is not used; None where it is at hand."""
    return missing_module if _C is None else _C.obstacle_to_matrix_unit() or None


@constant_when_compiled
def has_matrix_unit() -> bool:
    """Whether the instruction set in use multiplies tiles."""
    return _C is not None and _C.has_matrix_unit()


def measure_peak(dtype: torch.dtype = torch.float32) -> float:
    """GFLOP/s of multiply-adds that touch no memory beyond L1, on torch's threads: the roof.

    For bfloat16 it is that of bfloat16 pairs or of the matrix unit, where the instruction set in
    use multiplies them.
    """
    if missing_module is not None:
        raise RuntimeError(f"mmcore._C could not be imported ({missing_module})")
    of_bfloat16 = dtype == torch.bfloat16 and _C.has_bfloat16_products()
    return _C.measure_peak(of_bfloat16, torch.get_num_threads())


def _dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
