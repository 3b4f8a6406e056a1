"""An inverse temperature below 0 is refused by every objective that has one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from machines import IS_GPU
from torch import Tensor

from mmcore import functional


def unit_rows() -> Tensor:
    return F.normalize(torch.randn(6, 8), dim=1)


X, Y, Z = (unit_rows() for _ in range(3))
LABEL = torch.arange(6) // 2
MODALITIES = {"a": X, "b": Y, "c": Z}
WORDS = (torch.randn(6, 3, 4), torch.randn(9, 4), torch.ones(6, 3, dtype=torch.int64))
CALLS: dict[str, Callable[[float | Tensor], Tensor]] = {
    "clip_loss": lambda s: functional.clip_loss(X, Y, s),
    "coca_loss": lambda s: functional.coca_loss(X, Y, s, *WORDS),
    "dcl_loss": lambda s: functional.dcl_loss(X, Y, s),
    "distill_clip_loss": lambda s: functional.distill_clip_loss(X, Y, s, Y, Z, 5.0).contrastive,
    "gram_loss": lambda s: functional.gram_loss(MODALITIES, s, anchor="a"),
    "hard_negative_loss": lambda s: functional.hard_negative_loss(X, Y, s),
    "info_nce_loss": lambda s: functional.info_nce_loss(X, Y, s),
    "matryoshka_loss": lambda s: functional.matryoshka_loss(X, Y, s, dims=[4, 8]),
    "mil_nce_loss": lambda s: functional.mil_nce_loss(X, Y, LABEL, LABEL, s),
    "multimodal_loss": lambda s: functional.multimodal_loss(MODALITIES, s),
    "multiple_negatives_ranking_loss": lambda s: functional.multiple_negatives_ranking_loss(
        X, [Y, Z], s, hardness="all_negatives", hardness_strength=5.0
    ),
    "nt_xent_loss": lambda s: functional.nt_xent_loss(X, Y, s),
    "siglip_loss": lambda s: functional.siglip_loss(X, Y, s, -10.0),
    "sup_con_loss": lambda s: functional.sup_con_loss(X, LABEL, s),
    "symile_loss": lambda s: functional.symile_loss(MODALITIES, s),
    "unicl_loss": lambda s: functional.unicl_loss(X, Y, LABEL, LABEL, s),
}  # fmt: skip
MESSAGE = re.escape("scale, the inverse temperature, must be at least 0, got -5.0")


def test_every_objective_with_a_scale_is_here() -> None:
    losses = [name for name in functional.__all__ if name.endswith("_loss")]
    has_scale = [
        name
        for name in losses
        if "scale" in inspect.signature(getattr(functional, name)).parameters
    ]
    assert sorted(CALLS) == sorted(has_scale)


@pytest.mark.parametrize("name", CALLS)
def test_below_zero(name: str) -> None:
    with pytest.raises(ValueError, match=MESSAGE):
        CALLS[name](-5.0)
    if not IS_GPU:  # where the host does not see a tensor's number
        with pytest.raises(ValueError, match=MESSAGE):
            CALLS[name](torch.tensor(-5.0, requires_grad=True))
    assert CALLS[name](0.0).isfinite()


def test_of_a_teacher() -> None:
    with pytest.raises(ValueError, match="teacher_" + MESSAGE):
        functional.distill_clip_loss(X, Y, 5.0, Y, Z, -5.0)
