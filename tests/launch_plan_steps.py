"""Calls of mmcore's ops whose kernels launch_plan_reports.py compares: forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import mmcore
from mmcore import functional as F
from mmcore.backends.reference.hardest_negatives import NegativesInputs
from mmcore.backends.triton.hardest_negatives import search

ROWS, COLUMNS, WIDTH = 256, 384, 64
Step = Callable[[], object]
scale, bias = torch.tensor(10.0, requires_grad=True), torch.tensor(-10.0, requires_grad=True)


def features(rows: int = ROWS, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Rows at multiples of 16 bytes."""
    return torch.randn(rows, WIDTH).to(dtype).requires_grad_()


def shifted(rows: int = ROWS) -> Tensor:
    """Half-precision features at an address that is no multiple of 16."""
    memory = torch.randn(rows * WIDTH + 1).bfloat16()
    return memory[1:].view(rows, WIDTH).requires_grad_()


def clip(x: Tensor, y: Tensor) -> None:
    F.clip_loss(x, y, scale, backend="triton").backward()


def siglip(x: Tensor, y: Tensor) -> None:
    F.siglip_loss(x, y, scale, bias, backend="triton").backward()


def project() -> None:
    of_norm: dict[str, Any] = {
        name: torch.randn(WIDTH, dtype=torch.bfloat16, requires_grad=True)
        for name in ("norm_weight", "norm_bias")
    }
    weight = torch.randn(WIDTH, WIDTH, dtype=torch.bfloat16, requires_grad=True)
    F.project(features(), weight, norm="layer", **of_norm, backend="triton").sum().backward()


def normalize(x: Tensor) -> None:
    F.l2_normalize(x, backend="triton").sum().backward()


def queue() -> None:
    keys = features(COLUMNS).detach()
    F.info_nce_loss(features(), features(), scale, queue=keys, backend="triton").backward()


def labels() -> None:
    label = torch.arange(ROWS) // 4
    F.sup_con_loss(features(), label, scale, backend="triton").backward()


def hardest() -> None:
    # What follows the search would read indices that no kernel has written.
    search(NegativesInputs(features(), features(), None, None))


def clip_in_chunks() -> None:
    with mmcore.workspace(0):
        clip(features(), features())


def statistics(dtype: torch.dtype, *, has_columns: bool, **vectors: Tensor) -> None:
    """Of softmax_similarity, with gradients of all that has any."""
    sides = features(dtype=dtype), features(COLUMNS, dtype)
    found = F.softmax_similarity(
        *sides, scale, columns=has_columns, backend="triton", **vectors
    )  # fmt: skip
    parts = (found.row_lse, found.row_pos, found.col_lse, found.col_pos)
    torch.stack(
        [each.sum() for each in parts if each is not None and each.numel()]
    ).sum().backward()


def by_label(dtype: torch.dtype) -> None:
    """Labels, groups, and every bias."""
    row, col = torch.arange(ROWS) // 4, torch.arange(COLUMNS) // 4
    biases = {
        "bias": bias, "row_bias": torch.randn(ROWS, requires_grad=True),
        "col_bias": torch.randn(COLUMNS, requires_grad=True),
    }  # fmt: skip
    statistics(
        dtype, has_columns=True, row_label=row, col_label=col, row_group=row % 9,
        col_group=col % 9, **biases,
    )  # fmt: skip


def one_side(dtype: torch.dtype) -> None:
    """Targets that several rows share, and no statistics of columns."""
    statistics(dtype, has_columns=False, target=torch.arange(ROWS) // 2)


def without_kept_exponentials(step: Callable[[torch.dtype], None]) -> Step:
    """In chunks of the least size."""

    def run() -> None:
        with mmcore.workspace(0):
            step(torch.bfloat16)

    return run


# Some twice, because addresses change.
STEPS: dict[str, list[Step]] = {
    "clip": 2 * [lambda: clip(features(), features())],
    "clip in chunks": 2 * [clip_in_chunks],
    "clip of rows that are not aligned": [lambda: clip(shifted(), shifted())],
    "clip in float32": [lambda: clip(features(dtype=torch.float32), features(dtype=torch.float32))],
    "clip in float16": [lambda: clip(features(dtype=torch.float16), features(dtype=torch.float16))],
    "labels and biases": [lambda: by_label(torch.bfloat16)],
    "labels and biases in float16": [lambda: by_label(torch.float16)],
    "labels and biases in chunks": [without_kept_exponentials(by_label)],
    "one side": [lambda: one_side(torch.bfloat16)],
    "one side in float16": [lambda: one_side(torch.float16)],
    "one side in float32": [lambda: one_side(torch.float32)],
    "shared targets": [
        lambda: statistics(torch.bfloat16, has_columns=True, target=torch.arange(ROWS) // 2)
    ],
    "siglip": 2 * [lambda: siglip(features(), features())],
    "siglip of rows that are not aligned": [lambda: siglip(shifted(), shifted())],
    "l2_normalize": [lambda: normalize(features()), lambda: normalize(shifted())],
    "project": 2 * [project],
    "queue": [queue],
    "labels": [labels],
    "hardest negatives": [hardest],
}
