"""What a call means: documentation, argument checks, and objectives composed from the ops."""

import torch.fx

from mmcore.functional.captioning import coca_loss, linear_cross_entropy_loss
from mmcore.functional.consistency import cyclip_loss
from mmcore.functional.contrastive import clip_loss
from mmcore.functional.correlation import cca_loss, cka_loss, coral_loss
from mmcore.functional.distillation import DistillClipLosses, distill_clip_loss
from mmcore.functional.geometry import alignment_loss, mmd_loss, uniformity_loss
from mmcore.functional.gram import gram
from mmcore.functional.hard_negatives import hard_negative_loss, vse_loss
from mmcore.functional.hardest_negatives import HardestNegatives, hardest_negatives
from mmcore.functional.info_nce import info_nce_loss
from mmcore.functional.matryoshka import matryoshka_loss
from mmcore.functional.multimodal import multimodal_loss
from mmcore.functional.projection import l2_normalize, project
from mmcore.functional.ranking import multiple_negatives_ranking_loss
from mmcore.functional.redundancy import barlow_twins_loss, soft_cca_loss, vicreg_loss
from mmcore.functional.sigmoid import siglip_loss
from mmcore.functional.similarity import (
    SigmoidSums,
    SoftmaxStatistics,
    sigmoid_similarity,
    softmax_similarity,
)
from mmcore.functional.supervised import mil_nce_loss, sup_con_loss, unicl_loss
from mmcore.functional.symile import symile_loss
from mmcore.functional.views import dcl_loss, nt_xent_loss
from mmcore.functional.volume import gram_loss
from mmcore.tracing import refuse_script

__all__ = [
    "DistillClipLosses",
    "HardestNegatives",
    "SigmoidSums",
    "SoftmaxStatistics",
    "alignment_loss",
    "barlow_twins_loss",
    "cca_loss",
    "cka_loss",
    "clip_loss",
    "coca_loss",
    "coral_loss",
    "cyclip_loss",
    "dcl_loss",
    "distill_clip_loss",
    "gram",
    "gram_loss",
    "hard_negative_loss",
    "hardest_negatives",
    "info_nce_loss",
    "l2_normalize",
    "linear_cross_entropy_loss",
    "matryoshka_loss",
    "mil_nce_loss",
    "mmd_loss",
    "multimodal_loss",
    "multiple_negatives_ranking_loss",
    "nt_xent_loss",
    "project",
    "siglip_loss",
    "sigmoid_similarity",
    "soft_cca_loss",
    "softmax_similarity",
    "sup_con_loss",
    "symile_loss",
    "unicl_loss",
    "uniformity_loss",
    "vicreg_loss",
    "vse_loss",
]

for _name in __all__:
    if _name.islower():
        # torch.fx.symbolic_trace records a call of mmcore.functional.<name>, and looks no further.
        torch.fx.wrap(_name)
        globals()[_name].__prepare_scriptable__ = refuse_script
