"""Thin modules over `mmcore.functional`."""

from mmcore.nn.contrastive import ClipLoss, SigLipLoss
from mmcore.nn.projection import L2Normalize, ProjectionHead

__all__ = ["ClipLoss", "L2Normalize", "ProjectionHead", "SigLipLoss"]
