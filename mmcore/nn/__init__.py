"""Thin modules over `mmcore.functional`."""

from mmcore.nn.contrastive import ClipLoss, SigLipLoss
from mmcore.nn.distillation import DistillClipLoss
from mmcore.nn.projection import L2Normalize, ProjectionHead

__all__ = ["ClipLoss", "DistillClipLoss", "L2Normalize", "ProjectionHead", "SigLipLoss"]
