"""Log-sum-exps of the rows and columns of a similarity matrix, and their gradients."""

from mmcore.backends.triton.softmax_similarity.backward import backward
from mmcore.backends.triton.softmax_similarity.forward import forward

__all__ = ["backward", "forward"]
