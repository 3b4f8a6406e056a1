"""Launches the compiled CPU kernels: tensors in, tensors out, no mathematics."""

from mmcore.backends.cpu.distillation import distillation, distillation_backward
from mmcore.backends.cpu.module import _C, instruction_sets, measure_peak, missing_module, obstacle
from mmcore.backends.cpu.prefixes import (
    kept_products,
    prefix_similarity,
    prefix_similarity_backward,
)
from mmcore.backends.cpu.projection import (
    l2_normalize,
    l2_normalize_backward,
    project,
    project_backward,
)
from mmcore.backends.cpu.similarity import (
    hardest_negatives,
    kept_tiles,
    sigmoid_similarity,
    sigmoid_similarity_backward,
    softmax_similarity,
    softmax_similarity_backward,
)

__all__ = [
    "_C",
    "distillation",
    "distillation_backward",
    "hardest_negatives",
    "instruction_sets",
    "kept_products",
    "kept_tiles",
    "l2_normalize",
    "l2_normalize_backward",
    "measure_peak",
    "missing_module",
    "obstacle",
    "prefix_similarity",
    "prefix_similarity_backward",
    "project",
    "project_backward",
    "sigmoid_similarity",
    "sigmoid_similarity_backward",
    "softmax_similarity",
    "softmax_similarity_backward",
]
