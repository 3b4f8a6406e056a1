"""Norm, product and normalisation of rows, and their gradients."""

from mmcore.backends.triton.project.backward import backward
from mmcore.backends.triton.project.forward import forward

__all__ = ["backward", "forward"]
