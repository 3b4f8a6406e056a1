"""mmcore: compiled kernels for multimodal representation learning.

The core that sits on top of any encoders: project, normalise, compare everything with everything,
learn from it, without ever storing the N×M similarity matrix.

- ``mmcore.functional``: the operations, as in ``torch.nn.functional``.
- ``mmcore.nn``: the same as modules.
- ``mmcore.distributed``: rows that several processes hold.
- ``mmcore.retrieval``: finding across modalities: exact search of galleries of any size.
- ``mmcore.metrics``: modality gap, effective rank, alignment of geometries.
- ``mmcore.analysis``: classes by prompts, by neighbours, by a linear probe.
- ``mmcore.translation``: linear maps from one space to another.
- ``mmcore.backend``: choose the implementation for a block of code.
- ``mmcore.cached``, ``mmcore.caching``: batches that do not fit into the memory of the encoders.
- ``mmcore.workspace``: how much memory may be spent on time.
"""

from mmcore import analysis, distributed, functional, metrics, nn, ops, retrieval, translation
from mmcore.backends import FallbackWarning, backend
from mmcore.backends.workspace import workspace
from mmcore.functional.local_batch import LocalBatchWarning
from mmcore.gradient_caching import cached, caching

__version__ = "0.1.0"
__all__ = [
    "FallbackWarning",
    "LocalBatchWarning",
    "__version__",
    "analysis",
    "backend",
    "cached",
    "caching",
    "distributed",
    "functional",
    "metrics",
    "nn",
    "ops",
    "retrieval",
    "translation",
    "workspace",
]
