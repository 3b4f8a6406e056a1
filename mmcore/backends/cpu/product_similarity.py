"""product_similarity on the kernels of softmax_similarity."""

from mmcore.backends.cpu import softmax_similarity
from mmcore.backends.reference.product_similarity import ProductLoop

LOOP = ProductLoop(softmax_similarity)
forward, backward = LOOP.forward, LOOP.backward
