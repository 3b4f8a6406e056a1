"""Tile kernels for Hopper's matrix units, in Gluon: they serve the plainest calls, the rest Triton.

A Triton kernel multiplies, then finishes its tile while the matrix units wait. Here one warp brings
operands, and two warpgroups take tiles in turn: the epilogue of one runs while the other multiplies
(ring.py). Results are those of the Triton kernels; so is all that is not a tile's.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from mmcore.backends.triton.inputs import Matrix
from mmcore.backends.triton.launch import FORCED_TILES, HALF_PRECISION_TILES, is_interpreted

HOPPER = 9  # compute capability, major
# What the Triton kernel takes over tile by tile must be cut as it is here.
EXACT_TILE = HALF_PRECISION_TILES["sm_90"]["gradient"]


@cache
def _is_importable() -> bool:
    """Whether this Triton has Gluon, an experimental part of it, as the kernels know it."""
    try:
        _launches()
    except (ImportError, AttributeError):
        return False
    return True


def _launches() -> Any:
    return import_module(f"{__name__}.launch")


def sum_exponentials(*arguments: Any) -> tuple[Tensor, Tensor]:
    """launch.py's."""
    found: tuple[Tensor, Tensor] = _launches().sum_exponentials(*arguments)
    return found


def store_gradient(*arguments: Any) -> Tensor:
    """launch.py's."""
    found: Tensor = _launches().store_gradient(*arguments)
    return found


def serves(matrix: Matrix) -> bool:
    """Whether pairs are told by targets alone, on a GPU and in a layout that the kernels take.

    Tiles that are forced are those of the Triton kernels (mmcore/tuning.py).
    """
    x = matrix.x
    has_ids = matrix.row_label is not None or matrix.row_group is not None
    has_biases = matrix.row_bias is not None or matrix.col_bias is not None
    if matrix.y is None or has_ids or has_biases or matrix.denominator == "positives":
        return False
    if is_interpreted() or torch.version.hip is not None or FORCED_TILES:
        return False
    if torch.cuda.get_device_capability(x.device)[0] != HOPPER or not _is_importable():
        return False
    is_16_bit = x.dtype in (torch.bfloat16, torch.float16) and matrix.keys.dtype == x.dtype
    return is_16_bit and min(*matrix.shape, x.shape[1]) > 0 and matrix.may_use_descriptors()


def sigmoid_sums(*arguments: Any) -> Tensor:
    """launch.py's."""
    found: Tensor = _launches().sigmoid_sums(*arguments)
    return found
