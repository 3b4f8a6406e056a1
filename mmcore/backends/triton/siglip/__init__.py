"""The loss of SigLIP, fused: three launches and two products forward, one launch backward."""

from mmcore.backends.triton.siglip.backward import backward
from mmcore.backends.triton.siglip.forward import forward

__all__ = ["backward", "forward"]
