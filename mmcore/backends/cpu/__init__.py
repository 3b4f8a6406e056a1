"""Launches the compiled CPU kernels: tensors in, tensors out, no mathematics."""

from mmcore.backends.cpu.module import (
    _C,
    has_matrix_unit,
    instruction_sets,
    measure_peak,
    missing_module,
    obstacle,
    obstacle_to_matrix_unit,
)

__all__ = [
    "_C",
    "has_matrix_unit",
    "instruction_sets",
    "measure_peak",
    "missing_module",
    "obstacle",
    "obstacle_to_matrix_unit",
]
