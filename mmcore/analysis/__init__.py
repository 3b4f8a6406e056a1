"""What a shared space says about things: classes by prompts, by neighbours, by a linear probe."""

from mmcore.analysis.neighbours import NeighbourVotes, knn_classify
from mmcore.analysis.probe import LinearProbe, linear_probe
from mmcore.analysis.zero_shot import ZeroShot, zero_shot_classify

__all__ = [
    "LinearProbe",
    "NeighbourVotes",
    "ZeroShot",
    "knn_classify",
    "linear_probe",
    "zero_shot_classify",
]
