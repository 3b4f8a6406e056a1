"""How many float32 numbers the CPU kernels keep from a forward for its backward."""

from __future__ import annotations

import torch

from mmcore.backends.cpu.module import has_matrix_unit
from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.prefix_similarity import PrefixInputs
from mmcore.backends.reference.product_similarity import ProductInputs
from mmcore.backends.workspace import if_it_fits

MARGIN = 2048  # blocks reach beyond the matrix, and beyond every stripe of it


def softmax_similarity(workspace: int, inputs: SimilarityInputs) -> int:
    """Tiles of exponentials: as many as the workspace holds, or the matrix in whole blocks."""
    if _is_faster_again(inputs.precision):
        return 0
    return _tiles(workspace, inputs.x.shape[0], inputs.keys.shape[0])


def sigmoid_similarity(workspace: int, inputs: SimilarityInputs) -> int:
    """The gradients of x and y, if the workspace holds them."""
    size = inputs.x.numel() + (0 if inputs.y is None else inputs.y.numel())
    return if_it_fits(size, workspace)


def product_similarity(workspace: int, inputs: ProductInputs) -> int:
    """Tiles of each modality's matrix."""
    if _is_faster_again(inputs.precision):
        return 0
    rows = inputs.features[0].shape[0]
    return _tiles(workspace, rows, rows)


def prefix_similarity(workspace: int, inputs: PrefixInputs) -> int:
    """Products of all prefixes, if the workspace holds them."""
    if _is_faster_again(inputs.precision):
        return 0
    tiles = _tiles(workspace, inputs.x.shape[0], inputs.y.shape[0])
    size: int = torch.sym_min(workspace // 4, len(inputs.ends) * tiles)
    return size


def _is_faster_again(precision: str) -> bool:
    """Whether to compute products twice takes no longer than to write and read them."""
    return precision == "medium" and has_matrix_unit()


def _tiles(workspace: int, rows: int, columns: int) -> int:
    size: int = torch.sym_min(workspace // 4, (rows + MARGIN) * (columns + MARGIN))
    return size
