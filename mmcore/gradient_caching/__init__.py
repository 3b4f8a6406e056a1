"""Gradient caching: batches that do not fit into a tower's memory, with the exact gradient.

Gao, Zhang, Han & Callan, "Scaling Deep Contrastive Learning Batch Size under Memory Limited Setup",
RepL4NLP 2021.
"""

from mmcore.gradient_caching.cache import DEFAULT_ROWS, Cache, cached, cached_call, caching

__all__ = ["DEFAULT_ROWS", "Cache", "cached", "cached_call", "caching"]
