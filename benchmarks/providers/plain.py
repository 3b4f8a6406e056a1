"""Plain torch as one writes it, and open_clip's own losses: eager, and under torch.compile.

Run in float64, the eager function is the yardstick of every error.
"""

import torch
import torch.nn.functional as F

from cases import Case
from inputs import Mode
from measure import Function
from mmcore.bench.catalogue.contrastive import open_clip_clip, open_clip_siglip
from providers.compiling import compiled
from providers.provider import Built
from similarity_cases import NTXentCase, SupConCase


def nt_xent_in_torch(case: NTXentCase) -> Function:
    """NT-Xent over the whole matrix, in the form that torch.compile makes the fastest."""

    def nt_xent(x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        is_self = torch.eye(rows, dtype=torch.bool, device=x.device)
        logits = ((case.scale * x) @ x.T).masked_fill(is_self, -torch.inf)
        other_view = (torch.arange(rows, device=x.device) + rows // 2) % rows
        return F.cross_entropy(logits, other_view)

    return nt_xent


def sup_con_in_torch(case: SupConCase) -> Function:
    """SupCon over the whole matrix, in the form that torch.compile makes the fastest."""

    def sup_con(x: torch.Tensor) -> torch.Tensor:
        label = torch.arange(x.shape[0], device=x.device) // case.rows_per_class
        is_self = torch.eye(x.shape[0], dtype=torch.bool, device=x.device)
        is_positive = (label[:, None] == label) & ~is_self
        logits = (case.scale * x) @ x.T
        positives = torch.where(is_positive, logits, 0.0).sum(1)
        lse = logits.masked_fill(is_self, -torch.inf).logsumexp(1)
        return (lse - positives / (case.rows_per_class - 1)).mean()

    return sup_con


def project_in_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    norm_weight: torch.Tensor,
    norm_bias: torch.Tensor,
) -> torch.Tensor:
    """A projection head as one writes it in torch."""
    normed = F.layer_norm(x, (x.shape[1],), norm_weight, norm_bias)
    return F.normalize(F.linear(normed, weight, bias), dim=1)


def l2_normalize_in_torch(x: torch.Tensor) -> torch.Tensor:
    """F.normalize over rows."""
    return F.normalize(x, dim=1)


def clip_in_torch(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The formula of open_clip's ClipLoss, both products of it."""
    target = torch.arange(x.shape[0], device=x.device)
    of_rows = F.cross_entropy(scale * x @ y.T, target)
    return (of_rows + F.cross_entropy(scale * y @ x.T, target)) / 2


def siglip_in_torch(
    x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
) -> torch.Tensor:
    """The formula of open_clip's SigLipLoss."""
    logits = scale * x @ y.T + bias
    sign = 2 * torch.eye(x.shape[0], dtype=x.dtype, device=x.device) - 1
    return -F.logsigmoid(sign * logits).sum() / x.shape[0]


def eager_function(case: Case) -> Function:
    """The eager rival of an operation; open_clip's formulas stand in where it is not installed."""
    if isinstance(case, NTXentCase):
        return nt_xent_in_torch(case)
    if isinstance(case, SupConCase):
        return sup_con_in_torch(case)
    if case.op in ("clip", "siglip"):
        try:
            return open_clip_clip() if case.op == "clip" else open_clip_siglip()
        except ImportError:
            return clip_in_torch if case.op == "clip" else siglip_in_torch
    return project_in_torch if case.op == "project" else l2_normalize_in_torch


def build_eager(case: Case, mode: Mode) -> Built:
    """The eager rival as it is."""
    return Built(eager_function(case))


def build_compiled(case: Case, mode: Mode) -> Built:
    """torch.compile of the eager rival, in one graph."""
    return compiled(eager_function(case))
