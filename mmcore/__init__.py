"""mmcore: compiled kernels for multimodal representation learning.

The core that sits on top of any encoders: project, normalise, compare everything with everything,
learn from it, without ever storing the N×M similarity matrix.

- ``mmcore.functional``: the operations, as in ``torch.nn.functional``.
- ``mmcore.nn``: the same as modules.
- ``mmcore.backend``: choose the implementation for a block of code.
"""

from mmcore import functional, nn, ops
from mmcore.backends import FallbackWarning, backend

__version__ = "0.1.0"
__all__ = ["FallbackWarning", "__version__", "backend", "functional", "nn", "ops"]
