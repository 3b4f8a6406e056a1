"""Peak memory of one objective, forward and backward, in this process, which must be fresh.

    python tests/objective_memory.py clip_loss    prints bytes above inputs and gradients

Peak: VmHWM less VmRSS before the call, both of /proc/self/status, less the gradients of the inputs.
What an allocator has once taken it reuses unseen, so one process measures one objective.
"""

from __future__ import annotations

import ctypes
import gc
import re
import sys
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

import mmcore
from mmcore import functional

ROWS, WIDTH = 32_768, 256
# Enough to load libraries, too little to leave buffers behind.
WARM_UP_ROWS = 64

Objective = Callable[..., Tensor]


def labels(rows: int) -> Tensor:
    return torch.arange(rows) // 4


def modalities(function: Objective, *settings: float, **options: object) -> Objective:
    """An objective of features by name, as one of three tensors."""
    return lambda *sides: function(dict(zip("abc", sides, strict=True)), *settings, **options)


def ranking(query: Tensor, positive: Tensor, negative: Tensor) -> Tensor:
    return functional.multiple_negatives_ranking_loss(
        query,
        [positive, negative],
        20.0,
        directions=("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc"),
    )


def distilled(x: Tensor, y: Tensor) -> Tensor:
    """The teacher is of this width, and counts as an input: its rows are those of x and y."""
    losses = functional.distill_clip_loss(x, y, 20.0, x.detach(), y.detach(), 50.0)
    return losses.contrastive + losses.distillation


# The rows of each input in units of ROWS, and the objective: its matrix has ROWS columns.
OBJECTIVES: dict[str, tuple[tuple[float, ...], Objective]] = {
    "clip_loss": ((1, 1), lambda x, y: functional.clip_loss(x, y, 100.0)),
    "siglip_loss": ((1, 1), lambda x, y: functional.siglip_loss(x, y, 10.0, -10.0)),
    "info_nce_loss": ((0.5, 1), lambda x, y: functional.info_nce_loss(x, y, 14.0)),
    "info_nce_loss, a queue": (
        (0.5, 0.5, 0.5),
        lambda x, y, queue: functional.info_nce_loss(x, y, 14.0, queue=queue.detach()),
    ),
    "sup_con_loss": ((1,), lambda x: functional.sup_con_loss(x, labels(len(x)), 10.0)),
    "unicl_loss": (
        (1, 1),
        lambda x, y: functional.unicl_loss(x, y, labels(len(x)), labels(len(y)), 14.0),
    ),
    "unicl_loss, groups": (
        (1, 1),
        lambda x, y: functional.unicl_loss(
            x,
            y,
            labels(len(x)),
            labels(len(y)),
            14.0,
            row_group=labels(len(x)) // 2,
            col_group=labels(len(y)) // 2,
        ),
    ),
    "mil_nce_loss": (
        (1, 1),
        lambda x, y: functional.mil_nce_loss(x, y, labels(len(x)), labels(len(y)), 14.0),
    ),
    "nt_xent_loss": ((0.5, 0.5), lambda x, y: functional.nt_xent_loss(x, y, 10.0)),
    "dcl_loss": ((0.5, 0.5), lambda x, y: functional.dcl_loss(x, y, 10.0, sigma=0.5)),
    "hard_negative_loss": ((1, 1), lambda x, y: functional.hard_negative_loss(x, y, 14.0)),
    "multiple_negatives_ranking_loss": ((0.5, 0.5, 0.5), ranking),
    "multiple_negatives_ranking_loss, hardness": (
        (0.5, 0.5, 0.5),
        lambda x, y, z: functional.multiple_negatives_ranking_loss(
            x, [y, z], 20.0, hardness="all_negatives", hardness_strength=5.0
        ),
    ),
    "vse_loss": ((1, 1), functional.vse_loss),
    "distill_clip_loss": ((1, 1), distilled),
    "uniformity_loss": ((1,), functional.uniformity_loss),
    "mmd_loss": ((1, 1), lambda x, y: functional.mmd_loss(x, y, bandwidths=(1.0,))),
    "linear_cross_entropy_loss": (
        (1, 1),
        lambda x, y: functional.linear_cross_entropy_loss(x, y, torch.arange(len(x)) % len(y)),
    ),
    "coca_loss": (
        (0.5, 0.5, 1, 1),
        lambda x, y, hidden, weight: functional.coca_loss(
            x, y, 14.0, hidden, weight, torch.arange(len(hidden)) % len(weight)
        ),
    ),
    "matryoshka_loss": (
        (1, 1),
        lambda x, y: functional.matryoshka_loss(x, y, 20.0, dims=(64, 128, 256)),
    ),
    "multimodal_loss": ((1, 1, 1), modalities(functional.multimodal_loss, 14.0, pairs="a")),
    "symile_loss": ((1, 1, 1), modalities(functional.symile_loss, 14.0)),
    "symile_loss, shuffled": (
        (1, 1, 1),
        modalities(functional.symile_loss, 14.0, negatives="shuffled"),
    ),
    "gram_loss": ((1, 1, 1), modalities(functional.gram_loss, 14.0, anchor="a")),
}


def inputs(shares: tuple[float, ...], rows: int) -> list[Tensor]:
    return [
        F.normalize(torch.randn(int(share * rows), WIDTH), dim=1).requires_grad_()
        for share in shares
    ]


def peak_bytes(name: str) -> int:
    shares, objective = OBJECTIVES[name]
    objective(*inputs(shares, WARM_UP_ROWS)).backward()
    sides = inputs(shares, ROWS)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = status_bytes("VmRSS")
    objective(*sides).backward()
    gradients = sum(side.numel() * side.element_size() for side in sides)
    return max(status_bytes("VmHWM") - before - gradients, 0)


def status_bytes(field: str) -> int:
    found = re.search(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


if __name__ == "__main__":
    torch.set_num_threads(1)
    with mmcore.workspace(0), mmcore.backend("cpu"):
        print(peak_bytes(sys.argv[1]))
