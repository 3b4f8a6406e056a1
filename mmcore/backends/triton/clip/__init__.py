"""The loss of CLIP and its gradients, in as few launches as there are."""

from mmcore.backends.triton.clip.backward import backward
from mmcore.backends.triton.clip.forward import forward

__all__ = ["backward", "forward"]
