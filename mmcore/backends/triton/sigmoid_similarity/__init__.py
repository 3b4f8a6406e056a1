"""Sums of softplus over a similarity matrix, and their gradients."""

from mmcore.backends.triton.sigmoid_similarity.backward import backward
from mmcore.backends.triton.sigmoid_similarity.forward import forward

__all__ = ["backward", "forward"]
