"""Thin modules over `mmcore.functional`."""

from mmcore.nn.cached import Cached
from mmcore.nn.captioning import CoCaLoss, LinearCrossEntropyLoss
from mmcore.nn.contrastive import (
    ClipLoss,
    HardNegativeLoss,
    InfoNceLoss,
    MatryoshkaLoss,
    MultipleNegativesRankingLoss,
    SigLipLoss,
    VseLoss,
)
from mmcore.nn.distillation import DistillClipLoss
from mmcore.nn.geometry import AlignmentLoss, MmdLoss, UniformityLoss
from mmcore.nn.gram import (
    BarlowTwinsLoss,
    CcaLoss,
    CkaLoss,
    CoralLoss,
    CyClipLoss,
    SoftCcaLoss,
    VicRegLoss,
)
from mmcore.nn.multimodal import GramLoss, MultimodalLoss, SymileLoss
from mmcore.nn.projection import L2Normalize, ProjectionHead
from mmcore.nn.supervised import MilNceLoss, SupConLoss, UniClLoss
from mmcore.nn.views import DclLoss, NtXentLoss

__all__ = [
    "AlignmentLoss",
    "BarlowTwinsLoss",
    "Cached",
    "CcaLoss",
    "CkaLoss",
    "ClipLoss",
    "CoCaLoss",
    "CoralLoss",
    "CyClipLoss",
    "DclLoss",
    "DistillClipLoss",
    "GramLoss",
    "HardNegativeLoss",
    "InfoNceLoss",
    "L2Normalize",
    "LinearCrossEntropyLoss",
    "MatryoshkaLoss",
    "MilNceLoss",
    "MmdLoss",
    "MultimodalLoss",
    "MultipleNegativesRankingLoss",
    "NtXentLoss",
    "ProjectionHead",
    "SigLipLoss",
    "SoftCcaLoss",
    "SupConLoss",
    "SymileLoss",
    "UniClLoss",
    "UniformityLoss",
    "VicRegLoss",
    "VseLoss",
]
