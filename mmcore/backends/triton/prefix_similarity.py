"""Statistics of prefixes of the width: the loop of backends/prefixes.py over this backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.backends.inputs import (
    Gradients,
    PrefixInputs,
    PrefixStatistics,
    PrefixUpstream,
    PrefixWanted,
    SimilarityInputs,
    SoftmaxStatistics,
    SoftmaxUpstream,
    SoftmaxWanted,
)
from mmcore.backends.prefixes import PrefixCall, PrefixLoop
from mmcore.backends.triton.inputs import finished
from mmcore.backends.triton.l2_normalize import backward as l2_normalize_backward
from mmcore.backends.triton.l2_normalize import forward as l2_normalize_forward
from mmcore.backends.triton.softmax_similarity import backward as softmax_backward
from mmcore.backends.triton.softmax_similarity import forward as softmax_forward


def forward(inputs: PrefixInputs, kept_size: int) -> PrefixStatistics:
    """The statistics of every prefix."""
    return PrefixStatistics(*_LOOP.forward(*inputs, kept_size))


def backward(
    inputs: PrefixInputs, statistics: PrefixStatistics, upstream: PrefixUpstream,
    wanted: PrefixWanted, rounds: bool,
) -> Gradients:  # fmt: skip
    """Gradients of x, y and scale; rounded to the dtypes of these, or sums."""
    lse = (statistics.row_lse, statistics.col_lse)
    every = range(len(inputs.ends))
    found = _LOOP.add_gradients(PrefixCall(*inputs), every, lse, upstream)
    return finished(found, (inputs.x, inputs.y, inputs.scale), wanted, rounds)


# The loop passes positions until backends/prefixes.py calls families by name.
def _softmax_forward(*arguments: Any) -> SoftmaxStatistics:
    *described, kept_size = arguments
    return softmax_forward(SimilarityInputs(*described), kept_size)


def _softmax_backward(*arguments: Any) -> tuple[Tensor, ...]:
    inputs, rest = SimilarityInputs(*arguments[:15]), arguments[15:]
    statistics, upstream = SoftmaxStatistics(*rest[:5]), SoftmaxUpstream(*rest[5:9])
    found = softmax_backward(
        inputs, statistics, upstream, SoftmaxWanted(True, True, True), rounds=True
    )
    nothing = torch.empty(0, device=inputs.x.device)
    return tuple(nothing if each is None else each for each in found)


_LOOP = PrefixLoop(l2_normalize_forward, l2_normalize_backward, _softmax_forward, _softmax_backward)
