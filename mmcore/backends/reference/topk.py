"""topk in plain torch: a float64 product selects, with a bound, and exact scores decide.

    found(i) = the first k items by (−score, index), of this chunk and of what earlier chunks found

An item is scored where its upper bound reaches the query's threshold: its k-th best score so far,
or the k-th largest lower bound of the tile. Where the bounds of all items overlap, as those of
equal rows do, all are scored, a tile at a time. The formulas: backends/retrieval.py, scores.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmcore.backends import workspace
from mmcore.backends.reference import scores
from mmcore.backends.reference.scores import RowTerms
from mmcore.backends.retrieval import Found, TopkInputs

BYTES_OF_AN_ENTRY = 64  # of a tile: scores, bounds, masks, and the list of its pairs
COLUMNS = 4096
LAST = torch.iinfo(torch.int64).max


class Tile(NamedTuple):
    """Some items of the chunk, and what the bounds need of them."""

    items: slice
    wide: Tensor  # (m, D) float64
    terms: RowTerms
    bias: Tensor | None


def search(inputs: TopkInputs, best: Found | None) -> Found:
    """The best items of this chunk and of `best`."""
    queries, gallery = inputs.queries, inputs.gallery
    found = nothing(queries, inputs.k) if best is None else Found(*(part.clone() for part in best))
    if not queries.shape[0] or not gallery.shape[0]:
        return found
    query_terms, gallery_terms = scores.row_terms(queries), scores.row_terms(gallery)
    columns = min(COLUMNS, scores.rows_of_a_piece(gallery.shape[1]))
    size = max(1, workspace.current(queries.device.type) // (BYTES_OF_AN_ENTRY * columns))
    size = min(size, scores.rows_of_a_piece(queries.shape[1]))
    for begin in range(0, gallery.shape[0], columns):
        tile = _tile(inputs, gallery_terms, slice(begin, min(begin + columns, gallery.shape[0])))
        for first in range(0, queries.shape[0], size):
            rows = slice(first, min(first + size, queries.shape[0]))
            _search_tile(inputs, query_terms, rows, tile, found)
    return found


def nothing(queries: Tensor, k: int) -> Found:
    """What is found in an empty gallery."""
    shape, device = (queries.shape[0], k), queries.device
    return Found(
        torch.full(shape, -torch.inf, dtype=torch.float64, device=device),
        torch.full(shape, -1, dtype=torch.int64, device=device),
    )


def best_of(values: Tensor, indices: Tensor, k: int) -> Found:
    """The first k of each row by (−score, index), where −1 stands for no item and comes last."""
    order = torch.where(indices < 0, LAST, indices).argsort(dim=1)
    values, indices = values.gather(1, order), indices.gather(1, order)
    values, order = values.sort(dim=1, descending=True, stable=True)
    return Found(values[:, :k].contiguous(), indices.gather(1, order)[:, :k].contiguous())


def _tile(inputs: TopkInputs, terms: RowTerms, items: slice) -> Tile:
    bias = None if inputs.bias is None else inputs.bias[items]
    of_items = RowTerms(*(value[items] for value in terms))
    return Tile(items, inputs.gallery[items].double(), of_items, bias)


def _search_tile(
    inputs: TopkInputs, query_terms: RowTerms, rows: slice, tile: Tile, found: Found
) -> None:
    """Puts the best of the tile into `found`, for some queries."""
    terms = RowTerms(*(value[rows] for value in query_terms))
    known = Found(found.scores[rows], found.indices[rows])
    row, col = _candidates(inputs, terms, rows, tile, known.scores[:, -1])
    if not row.numel():
        return
    queries, items = inputs.queries[rows], inputs.gallery[tile.items]
    score = scores.pair_scores(queries, items, inputs.metric, terms, tile.terms, row, col)
    if tile.bias is not None:
        score += tile.bias[col]
    kept = ~score.isnan()
    row, col, score = row[kept], col[kept], score[kept]
    values, indices = _by_row(row, score, col + (inputs.offset + tile.items.start), known)
    better = best_of(values, indices, inputs.k)
    known.scores.copy_(better.scores)
    known.indices.copy_(better.indices)


def _candidates(
    inputs: TopkInputs, terms: RowTerms, rows: slice, tile: Tile, known: Tensor
) -> tuple[Tensor, Tensor]:
    """The pairs of the tile that may be among the best; `known` is the k-th best score so far."""
    value, radius = scores.approximate(
        inputs.queries[rows].double(), tile.wide, inputs.metric, terms, tile.terms
    )
    may_be = _visible(inputs, rows, tile) & ~terms.is_nan[:, None] & ~tile.terms.is_nan
    if tile.bias is not None:
        value += tile.bias
        radius += 8 * scores.UNIT * tile.bias.abs()
        may_be &= ~tile.bias.isnan()
    if inputs.k <= value.shape[1]:
        lower = (value - radius).nan_to_num_(nan=-torch.inf, posinf=-torch.inf)
        lower.masked_fill_(~may_be, -torch.inf)
        known = known.maximum(lower.topk(inputs.k, dim=1).values[:, -1])
    # Where there is no bound the sum is ∞ or NaN, and neither is below the threshold.
    may_be &= ~(value + radius < known[:, None])
    row, col = may_be.nonzero(as_tuple=True)
    return row, col


def _visible(inputs: TopkInputs, rows: slice, tile: Tile) -> Tensor:
    """(n, m): which items of the tile are not excluded for a query."""
    count, device = tile.wide.shape[0], tile.wide.device
    size = rows.stop - rows.start
    visible = torch.ones((size, count), dtype=torch.bool, device=device)
    if inputs.query_group is not None and inputs.gallery_group is not None:
        group = inputs.query_group[rows, None]
        visible &= (group != inputs.gallery_group[tile.items]) | (group == -1)
    if inputs.excluded is not None:
        numbers = torch.arange(count, device=device) + (inputs.offset + tile.items.start)
        visible &= inputs.excluded[rows, None] != numbers
    return visible


def _by_row(row: Tensor, score: Tensor, index: Tensor, known: Found) -> tuple[Tensor, Tensor]:
    """The pairs beside what is known: a row for each query, filled with (−∞, −1)."""
    rows, k = known.scores.shape
    counts = torch.bincount(row, minlength=rows)
    place = torch.arange(row.shape[0], device=row.device) - (counts.cumsum(0) - counts)[row] + k
    width = k + int(counts.max())
    values = known.scores.new_full((rows, width), -torch.inf)
    indices = known.indices.new_full((rows, width), -1)
    values[:, :k], indices[:, :k] = known
    values[row, place], indices[row, place] = score, index
    return values, indices
