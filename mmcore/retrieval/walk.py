"""The walk over the chunks of a gallery, which keeps what it has found when it is interrupted."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from mmcore.ops import topk as topk_op
from mmcore.ops.topk import Found, TopkInputs
from mmcore.retrieval import galleries
from mmcore.retrieval.alongside import Alongside
from mmcore.retrieval.galleries import Chunk, Source
from mmcore.retrieval.progress import Bar


class Request(NamedTuple):
    """What is asked of every chunk; checked."""

    queries: Tensor  # (N, D)
    k: int
    metric: str
    query_group: Tensor | None
    excluded: Tensor | None  # (N,) int64: numbers of rows of this gallery, −1 for none
    first_index: int
    first_pass: str
    progress: bool | None
    backend: str | None


class Stopped(Exception):
    """An interrupted walk: what was found among so many rows."""

    def __init__(self, found: Found, rows: int) -> None:
        super().__init__()
        self.found, self.rows = found, rows


def search(request: Request, source: Source, alongside: Alongside) -> tuple[Found, int]:
    """The best of all chunks, and how many rows they have."""
    # One assignment for both, so that they belong together whenever an interrupt comes.
    state = topk_op.nothing(request.queries, request.k), 0
    try:
        with Bar(source.rows, request.progress) as bar:
            for chunk in galleries.chunks(source, request.queries, request.k, alongside):
                if not chunk.features.shape[0]:
                    continue
                state = _searched(request, chunk, *state)
                bar.advance(chunk.features.shape[0])
    except KeyboardInterrupt:
        raise Stopped(*state) from None
    return state


def _searched(request: Request, chunk: Chunk, found: Found, rows: int) -> tuple[Found, int]:
    excluded = request.excluded
    inputs = TopkInputs(
        queries=request.queries,
        gallery=chunk.features,
        k=request.k,
        metric=request.metric,
        offset=request.first_index + rows,
        bias=chunk.bias,
        query_group=request.query_group,
        gallery_group=chunk.group,
        excluded=None if excluded is None else excluded + request.first_index,
        first_pass=request.first_pass,
        prepared=chunk.prepared,
    )
    best = found if rows else None
    found = topk_op.call(inputs, best, backend=request.backend)
    return found, rows + chunk.features.shape[0]
