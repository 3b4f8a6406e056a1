"""Finding across modalities, exactly: the best items for each query, from galleries of any size.

docs/retrieval.md explains scores, ties, memory, and every kind of gallery.
"""

from mmcore.retrieval.approximate import recall_of, to_faiss
from mmcore.retrieval.biases import csls_bias, inverted_softmax_bias
from mmcore.retrieval.galleries import open_features
from mmcore.retrieval.merging import TopK, merge
from mmcore.retrieval.prepared import Gallery
from mmcore.retrieval.progress import Interrupted
from mmcore.retrieval.search import topk

__all__ = [
    "Gallery",
    "Interrupted",
    "TopK",
    "csls_bias",
    "inverted_softmax_bias",
    "merge",
    "open_features",
    "recall_of",
    "to_faiss",
    "topk",
]
