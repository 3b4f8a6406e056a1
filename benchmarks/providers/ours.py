"""mmcore's functions on compiled kernels, never on a fallback."""

import os
from typing import Any

import torch

from cases import Case
from inputs import Mode
from measure import Function
from providers.provider import Built

# What changes mmcore's figures from outside: results name it, and the tables leave them out.
SETTINGS = ("MMCORE_CPU_ISA", "MMCORE_WORKSPACE")


def require_mmcore() -> None:
    """mmcore imports, and its compiled CPU kernels serve a call."""
    import mmcore.functional

    mmcore.functional.l2_normalize(torch.ones(1, 8), backend="cpu")


def build_mmcore(case: Case, mode: Mode) -> Built:
    """With the workspace that mmcore has by default."""
    return Built(mmcore_function(case), settings())


def build_mmcore_lean(case: Case, mode: Mode) -> Built:
    """With nothing kept from the forward for the backward."""
    import mmcore

    function = mmcore_function(case)

    def within_workspace(**inputs: torch.Tensor) -> torch.Tensor:
        with mmcore.workspace(0):
            return function(**inputs)

    return Built(within_workspace, settings("workspace=0"))


def build_mmcore_full(case: Case, mode: Mode) -> Built:
    """x compared with another tensor of the same numbers: the matrix is not known as symmetric."""
    return Built(mmcore_function(case, knows_symmetry=False), settings())


def settings(*own: str) -> str:
    """A provider's own settings, and those of the environment."""
    of_environment = [f"{name}={os.environ[name]}" for name in SETTINGS if name in os.environ]
    return ", ".join([*own, *of_environment])


def mmcore_function(case: Case, knows_symmetry: bool = True, backend: str = "cpu") -> Function:
    """What a user of mmcore would write for this operation."""
    from mmcore.functional import clip_loss, l2_normalize, project, siglip_loss

    def clip(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
        return clip_loss(x, y, scale, backend=backend)

    def siglip(
        x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        return siglip_loss(x, y, scale, bias, backend=backend)

    def project_rows(x: torch.Tensor, **parameters: torch.Tensor) -> torch.Tensor:
        return project(x, **parameters, norm="layer", backend=backend)

    def normalize(x: torch.Tensor) -> torch.Tensor:
        return l2_normalize(x, backend=backend)

    if case.op in ("nt_xent", "sup_con"):
        return views_function(case, knows_symmetry, backend)
    return {"clip": clip, "siglip": siglip, "project": project_rows, "l2_normalize": normalize}[
        case.op
    ]


def views_function(case: Any, knows_symmetry: bool, backend: str) -> Function:
    """NT-Xent or SupCon from mmcore's statistics; each row is in a group with itself alone."""
    from mmcore.functional import softmax_similarity

    def statistics(x: torch.Tensor, **positives: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        itself = torch.arange(x.shape[0], device=x.device)
        others = x if knows_symmetry else x.view_as(x)
        of_columns = {} if knows_symmetry else {"col_group": itself}
        if "row_label" in positives and not knows_symmetry:
            of_columns["col_label"] = positives["row_label"]
        result = softmax_similarity(
            x,
            others,
            case.scale,
            row_group=itself,
            **positives,
            **of_columns,
            columns=False,
            backend=backend,
        )
        return result.row_lse, result.row_pos

    def nt_xent(x: torch.Tensor) -> torch.Tensor:
        rows = x.shape[0]
        other_view = (torch.arange(rows, device=x.device) + rows // 2) % rows
        lse, positive = statistics(x, target=other_view)
        return (lse - positive).mean()

    def sup_con(x: torch.Tensor) -> torch.Tensor:
        label = torch.arange(x.shape[0], device=x.device) // case.rows_per_class
        lse, positives = statistics(x, row_label=label)
        return (lse - positives / (case.rows_per_class - 1)).mean()

    return nt_xent if case.op == "nt_xent" else sup_con
