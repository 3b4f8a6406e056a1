"""Launches the kernels that search the best items, and those that prepare a gallery for them."""

from __future__ import annotations

import torch
from torch import Tensor

from mmcore import _C
from mmcore.backends.cpu.arrays import Array, new, rows, threads, vector, vector_or_none
from mmcore.backends.retrieval import Found, TopkInputs

PREPARED_ALIGNMENT = 64


def search(inputs: TopkInputs, best: Found | None) -> Found:
    """The best items of this chunk and of `best`."""
    shape = (inputs.queries.shape[0], inputs.k)
    found = Found(new(shape, torch.float64), new(shape, torch.int64))
    _C.topk(
        rows(inputs.queries),
        rows(inputs.gallery),
        inputs.k,
        inputs.metric,
        inputs.offset,
        vector_or_none(inputs.bias),
        vector_or_none(inputs.query_group),
        vector_or_none(inputs.gallery_group),
        vector_or_none(inputs.excluded),
        inputs.first_pass,
        None if inputs.prepared is None else _aligned(inputs.prepared),
        None if best is None else vector(best.scores.flatten()),
        None if best is None else vector(best.indices.flatten()),
        vector(found.scores.view(-1)),
        vector(found.indices.view(-1)),
        threads(),
    )
    return found


def prepare(gallery: Tensor, metric: str) -> Tensor:
    """The gallery as bytes with the bounds of their error, uint8, (S,): about D + 20 a row.

    It names its version, dtype, shape and metric, and `search` refuses what another gallery has.
    """
    prepared = new(_C.prepared_size(rows(gallery)), torch.uint8)
    _C.prepare_gallery(rows(gallery), metric, vector(prepared), threads())
    return prepared


def _aligned(prepared: Tensor) -> Array:
    """As numbers of four bytes can be read: an array from a file may begin anywhere."""
    is_aligned = prepared.data_ptr() % PREPARED_ALIGNMENT == 0
    return vector(prepared if is_aligned else prepared.clone())
