"""How many float32 numbers the Triton kernels keep from a forward for its backward."""

from __future__ import annotations

from mmcore.backends.inputs import SimilarityInputs
from mmcore.backends.reference.product_similarity import ProductInputs
from mmcore.backends.triton.kept_rows import kept_tiles


def softmax_similarity(workspace: int, inputs: SimilarityInputs) -> int:
    """Rows of exponentials."""
    rows, columns = inputs.x.shape[0], inputs.keys.shape[0]
    return kept_tiles(workspace, rows, columns, inputs.multiplies_bfloat16, inputs.is_half_enough)


def product_similarity(workspace: int, inputs: ProductInputs) -> int:
    """Rows of exponentials of each modality's matrix."""
    rows = inputs.features[0].shape[0]
    return kept_tiles(workspace, rows, rows, inputs.multiplies_bfloat16, False)


def sigmoid_similarity(workspace: int, inputs: SimilarityInputs) -> int:
    """The gradients of x and y, if the workspace holds them and positives are targets.

    Kept gradients are right for upstream gradients (a, −a) only, which the host of a GPU cannot
    check; with targets the backward corrects them in O(N·D).
    """
    size = inputs.x.numel() + (0 if inputs.y is None else inputs.y.numel())
    return size if inputs.target is not None and 4 * size <= workspace else 0
