"""The contracts: importing this package registers every op with torch.

One file per op family, each in one reading order: mathematics, reference, contract (schema and
fakes), autograd, backends.
"""

from mmcore.ops import (
    distillation,
    gram,
    gram_volume,
    hardest_negatives,
    l2_normalize,
    prefix_similarity,
    product_similarity,
    project,
    sigmoid_similarity,
    softmax_similarity,
)

__all__ = [
    "distillation",
    "gram",
    "gram_volume",
    "hardest_negatives",
    "l2_normalize",
    "prefix_similarity",
    "product_similarity",
    "project",
    "sigmoid_similarity",
    "softmax_similarity",
]
