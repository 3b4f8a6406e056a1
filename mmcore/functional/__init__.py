"""What a call means: documentation, argument checks, and objectives composed from the ops."""

from mmcore.functional.contrastive import clip_loss
from mmcore.functional.projection import l2_normalize, project
from mmcore.functional.similarity import SoftmaxStatistics, softmax_similarity

__all__ = ["SoftmaxStatistics", "clip_loss", "l2_normalize", "project", "softmax_similarity"]
