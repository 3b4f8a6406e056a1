"""A search over processes: each has a shard of the gallery, and queries of its own.

The queries of all ranks are gathered, each rank searches its own shard for all of them, and what it
finds goes to the ranks whose queries these are, as float64 scores. So the gallery stays where it
is, and is read once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore.functional.ranks import Ranks
from mmcore.ops.sharded.collectives import (
    Group,
    all_gather,
    gather_uneven,
    group_of,
    offsets,
    parts_of_owner,
)
from mmcore.ops.topk import Found
from mmcore.retrieval import walk
from mmcore.retrieval.alongside import Alongside
from mmcore.retrieval.galleries import Source
from mmcore.retrieval.merging import best_of_all
from mmcore.retrieval.walk import Request

STEP = "search of a sharded gallery"


def search(request: Request, source: Source, alongside: Alongside, ranks: Ranks) -> Found:
    """The best of all shards for the queries of this rank."""
    counts = ranks.agree(
        "topk", {"queries": request.queries, "query_group": request.query_group},
        sizes={"queries": request.queries.shape[0]}, k=request.k, metric=request.metric,
        exclude_self=request.excluded is not None, first_index=request.first_index,
    )[:, 0].tolist()  # fmt: skip
    group = group_of(ranks.group)
    every = request._replace(
        queries=gather_uneven(request.queries, counts, group, STEP),
        query_group=_gathered(request.query_group, counts, group),
        excluded=_of_all(request.excluded, counts, ranks),
        first_index=0,
        progress=request.progress if ranks.rank == 0 else False,
    )
    found, rows = _searched(every, source, alongside, group)
    scores = parts_of_owner(found.scores, counts, group, STEP)
    indices = parts_of_owner(found.indices, counts, group, STEP)
    starts = [start + request.first_index for start in offsets(rows)]
    numbered = [
        torch.where(part < 0, -1, part + start)
        for part, start in zip(indices, starts, strict=False)
    ]
    return best_of_all(scores, numbered, request.k)


def _searched(
    request: Request, source: Source, alongside: Alongside, group: Group
) -> tuple[Found, list[int]]:
    """What this rank's shard has, and the rows of all shards.

    A rank that fails tells the others, which wait for it.
    """
    device = request.queries.device
    try:
        found, rows = walk.search(request, source, alongside)
    except Exception as error:
        if not isinstance(error, walk.Stopped):
            all_gather(torch.tensor([-1], device=device), group, STEP)
        raise
    every = all_gather(torch.tensor([rows], device=device), group, STEP)[:, 0].tolist()
    if min(every) < 0:
        raise RuntimeError(
            f"rank {every.index(-1)} of process group {group.name!r} failed in its search: its own "
            "error says why"
        )
    return found, every


def _gathered(values: Tensor | None, counts: list[int], group: Group) -> Tensor | None:
    return None if values is None else gather_uneven(values, counts, group, STEP)


def _of_all(excluded: Tensor | None, counts: list[int], ranks: Ranks) -> Tensor | None:
    """Rows of this shard are excluded for the queries of this rank alone."""
    if excluded is None:
        return None
    found = excluded.new_full((sum(counts),), -1)
    start = offsets(counts)[ranks.rank]
    found[start : start + len(excluded)] = excluded
    return found
