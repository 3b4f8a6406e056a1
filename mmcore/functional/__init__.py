"""What a call means: documentation, argument checks, and objectives composed from the ops."""

from mmcore.functional.contrastive import clip_loss
from mmcore.functional.projection import l2_normalize, project
from mmcore.functional.similarity import (
    SigmoidSums,
    SoftmaxStatistics,
    sigmoid_similarity,
    softmax_similarity,
)

__all__ = [
    "SigmoidSums",
    "SoftmaxStatistics",
    "clip_loss",
    "l2_normalize",
    "project",
    "sigmoid_similarity",
    "softmax_similarity",
]
