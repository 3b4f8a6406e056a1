"""product_similarity by a loop over this backend's softmax_similarity."""

from mmcore.backends.reference.product_similarity import ProductLoop
from mmcore.backends.triton import softmax_similarity

LOOP = ProductLoop(softmax_similarity)
forward, backward = LOOP.forward, LOOP.backward
