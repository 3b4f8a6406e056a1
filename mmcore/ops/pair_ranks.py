"""The ranks of relevant pairs among all pairs, for rows and for columns (backends/retrieval.py).

Without a gradient; no op of torch.
"""

from __future__ import annotations

import torch

from mmcore.backends import choose, implementation, selected
from mmcore.backends.retrieval import Counts as Counts
from mmcore.backends.retrieval import PairRanks as PairRanks
from mmcore.backends.retrieval import PairRanksInputs as PairRanksInputs


def call(inputs: PairRanksInputs, *, backend: str | None) -> PairRanks:
    """The counts of the directions that are wanted; the inputs are checked."""
    name = choose(selected(backend), inputs.x)
    with torch.no_grad():
        found: PairRanks = implementation(name, "pair_ranks").count(inputs)
    return found
