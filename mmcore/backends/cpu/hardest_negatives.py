"""Launches the kernel that searches hardest negatives."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore import _C
from mmcore.backends.cpu.arrays import new, threads, vector
from mmcore.backends.cpu.inputs import as_arrays
from mmcore.backends.reference.hardest_negatives import (
    HardestNegatives,
    NegativesInputs,
    with_products,
)
from mmcore.backends.reference.hardest_negatives import backward as backward


def forward(inputs: NegativesInputs) -> HardestNegatives:
    return with_products(inputs, *search(inputs))


def search(inputs: NegativesInputs) -> tuple[Tensor, Tensor]:
    """Where the rows' and the columns' largest products are."""
    rows, columns = (new(z.shape[0], torch.int64) for z in (inputs.x, inputs.y))
    _C.hardest_negatives(as_arrays(inputs.matrix()), vector(rows), vector(columns), threads())
    return rows, columns
