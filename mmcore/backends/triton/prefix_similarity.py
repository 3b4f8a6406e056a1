"""prefix_similarity by a loop over this backend's families."""

from mmcore.backends.reference.prefix_similarity import PrefixLoop
from mmcore.backends.triton import l2_normalize, softmax_similarity

LOOP = PrefixLoop(l2_normalize, softmax_similarity)
forward, backward = LOOP.forward, LOOP.backward
