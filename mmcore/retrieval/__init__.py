"""Finding across modalities, exactly: the best items for each query, from galleries of any size.

docs/retrieval.md explains scores, ties, memory, and every kind of gallery.
"""

from mmcore.retrieval.galleries import open_features
from mmcore.retrieval.merging import TopK, merge
from mmcore.retrieval.prepared import Gallery
from mmcore.retrieval.progress import Interrupted
from mmcore.retrieval.search import topk

__all__ = ["Gallery", "Interrupted", "TopK", "merge", "open_features", "topk"]
