"""Tile kernels for Hopper's matrix units, in Gluon: they serve the plainest calls.

A Triton kernel multiplies, then finishes its tile while the matrix units wait. Here one warp brings
operands, and two warpgroups take tiles in turn: the epilogue of one runs while the other multiplies
(ring.py). Results are those of the Triton kernels, which serve all other calls.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType

import torch

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.triton.inputs import may_use_descriptors, shape
from mmcore.backends.triton.launch import FORCED_TILES, HALF_PRECISION_TILES, is_interpreted

HOPPER = 9  # compute capability, major
# Triton's kernel computes some of the tiles of G, which must have the sides that they have here.
EXACT_TILE = HALF_PRECISION_TILES["sm_90"]["gradient"]


@cache
def launches() -> ModuleType:
    """The module launch.py, which needs Gluon."""
    return import_module(f"{__name__}.launch")


@cache
def _is_importable() -> bool:
    """Whether this Triton has Gluon, which is experimental, in the form that the kernels use."""
    try:
        launches()
    except (ImportError, AttributeError):
        return False
    return True


def serves(inputs: SimilarityInputs) -> bool:
    """Whether targets alone name pairs, on a GPU and in a layout that the kernels take.

    Forced tiles are those of the Triton kernels (mmcore/tuning.py).
    """
    x = inputs.x
    has_ids = inputs.row_label is not None or inputs.row_group is not None
    has_biases = inputs.row_bias is not None or inputs.col_bias is not None
    if inputs.y is None or has_ids or has_biases or inputs.denominator == "positives":
        return False
    if is_interpreted() or torch.version.hip is not None or FORCED_TILES:
        return False
    if torch.cuda.get_device_capability(x.device)[0] != HOPPER or not _is_importable():
        return False
    is_16_bit = x.dtype in (torch.bfloat16, torch.float16) and inputs.keys.dtype == x.dtype
    return is_16_bit and min(*shape(inputs), x.shape[1]) > 0 and may_use_descriptors(inputs)
