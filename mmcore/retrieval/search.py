"""The items of a gallery with the highest scores, exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmcore.functional import arguments as check
from mmcore.functional.ranks import ProcessGroup, as_ranks, tells_ranks
from mmcore.ops.topk import FIRST_PASSES, METRICS, Found
from mmcore.retrieval import across_ranks, galleries
from mmcore.retrieval.alongside import Alongside, ids_of_queries
from mmcore.retrieval.arrays import as_tensor, like
from mmcore.retrieval.galleries import Source
from mmcore.retrieval.merging import TopK, check_k
from mmcore.retrieval.progress import Interrupted
from mmcore.retrieval.walk import Request, Stopped, search

SCORE_DTYPES = {"float32": torch.float32, "float64": torch.float64}


@tells_ranks
def topk(
    queries: Any,
    gallery: Any,
    k: int,
    *,
    metric: str | None = None,
    gallery_bias: Any = None,
    query_group: Any = None,
    gallery_group: Any = None,
    exclude_self: bool = False,
    score_dtype: str | torch.dtype = "float32",
    first_index: int = 0,
    first_pass: str = "auto",
    process_group: ProcessGroup = None,
    progress: bool | None = None,
    backend: str | None = None,
) -> TopK:
    """The k items of a gallery with the highest score for each query.

    Equivalent, without ever storing the (N, M) scores, to ::

        scores = queries.double() @ gallery.double().T  # "cosine": of rows divided by their norms;
        # "l2": -((queries[:, None] - gallery) ** 2).sum(2)
        scores = scores + gallery_bias
        same_group = (query_group[:, None] == gallery_group) & (query_group[:, None] != -1)
        scores[same_group | scores.isnan()] = -inf
        scores, indices = scores.sort(dim=1, descending=True, stable=True)
        scores, indices = scores[:, :k].float(), indices[:, :k]

    Items are ordered by their float64 scores, which are summed in one fixed order; of equal scores
    the item of the lower index comes first. So the result does not depend on k, on how queries or
    gallery are cut, or on threads, instruction sets and backends. Without a gradient.

    Args:
        queries: (N, D), a torch tensor, a NumPy array or an array with `__dlpack__`, floating-point
            numbers, normalised or not.
        gallery: (M, D), in the dtype of `queries`: such an array or memory map; a `Gallery`; a path
            of .npy, .safetensors or .parquet; a table of pyarrow or a dataset of Hugging Face with
            one column of vectors (`open_features` chooses among several); or an iterable of chunks,
            arrays of any number of rows each. What is on the CPU is moved to the device of the
            queries by chunks.
        k: how many items, at least 1. Where a query has fewer, its row ends in scores of -inf and
            indices of -1.
        metric: ``"inner_product"``, ``"cosine"`` or ``"l2"``, minus the squared distance. Default:
            that of a `Gallery`, else the inner product.
        gallery_bias: (M,) floating-point numbers, added to the scores of each item: see `csls_bias`
            and `inverted_softmax_bias`. For an iterable of chunks also an iterable of parts.
        query_group, gallery_group: (N,) and (M,) integers: a query does not see items of its group;
            -1 is equal to nothing. `gallery_group` also by parts.
        exclude_self: the gallery is the queries, and row i does not see item i.
        score_dtype: ``"float32"``, or ``"float64"`` for parts that will be merged.
        first_index: the number of the gallery's first row, where it is one shard of several.
        first_pass: what selects the candidates that are scored in float64: ``"full"``, the given
            numbers; ``"int8"``, bytes with a bound of their error; ``"auto"``, what is faster. The
            result is the same.
        process_group: None, or whose processes hold the other shards of the gallery and the other
            queries: "world", a process group of torch.distributed or a DeviceMesh of one dimension.
            Each gets the items of all shards for its own queries, numbered rank after rank.
        progress: True for a progress bar of tqdm, None for one where the search takes longer than
            a few seconds on a terminal, False for none.
        backend: see `mmcore.backend`.

    Returns:
        `TopK`. A query with NaN has scores NaN and indices -1. An item whose score is NaN is never
        found.

    Raises:
        TypeError, ValueError: shapes, dtypes or devices do not fit together; k below 1; one group
            without the other; `exclude_self` with a gallery that is not the queries; a file that is
            cut short; a chunk of another width or dtype.
        Interrupted: on KeyboardInterrupt, of which it is a subclass; it holds what was found.

    Memory:
        O(N·k). Of an array nothing is copied; of an iterable one chunk is held while the next is
        made. On a CPU the compiled backend takes up to 64 MiB besides.

    Example:
        >>> import numpy as np, mmcore
        >>> gallery = np.array([[1, 0], [0, 1], [1, 0]], dtype="float32")
        >>> scores, indices = mmcore.retrieval.topk(gallery[:1], gallery, 2)
        >>> scores.tolist(), indices.tolist()
        ([[1.0, 1.0]], [[0, 2]])
    """
    x = as_tensor("queries", queries)
    check.check_matrix("queries", x)
    source = galleries.source_of(gallery)
    group = ids_of_queries(query_group, x)
    bias, item_group = _beside(source, gallery_bias, gallery_group, group is not None)
    if (group is None) != (item_group is None):
        raise ValueError("query_group and gallery_group must be given together, got one of them")
    dtype = _check_options(first_index, first_pass, progress, score_dtype)
    itself = _itself(x, source) if check.check_flag("exclude_self", exclude_self) else None
    ranks = as_ranks(process_group)
    request = Request(
        x, check_k(k), _metric(metric, source), group, itself, first_index, first_pass, progress,
        backend,
    )  # fmt: skip
    beside = Alongside(bias, item_group, source.rows, x.device)
    try:
        if ranks is None:
            found, _ = search(request, source, beside)
        else:
            found = across_ranks.search(request, source, beside, ranks)
    except Stopped as stopped:
        raise Interrupted(_result(queries, x, stopped.found, torch.float64), stopped.rows) from None
    return _result(queries, x, found, dtype)


def _beside(source: Source, bias: object, group: object, has_groups: bool) -> tuple[object, object]:
    """The bias and the groups of the items: the arguments, or those of a Gallery.

    The groups of a Gallery count where the queries have some.
    """
    if source.gallery is None:
        return bias, group
    own = source.gallery.bias, source.gallery.group if has_groups else None
    for name, given, of_gallery in (
        ("gallery_bias", bias, own[0]), ("gallery_group", group, own[1]),
    ):  # fmt: skip
        if given is not None and of_gallery is not None:
            raise ValueError(f"{name} must be None where the Gallery has its own")
    return (bias if own[0] is None else own[0]), (group if own[1] is None else own[1])


def _metric(metric: str | None, source: Source) -> str:
    """That of the argument, of the Gallery, or the default."""
    prepared_for = None if source.gallery is None else source.gallery.metric
    if metric is None:
        return prepared_for or METRICS[0]
    check.check_choice("metric", metric, METRICS)
    if prepared_for not in (None, metric):
        raise ValueError(f"metric must be {prepared_for!r}, as of the Gallery, got {metric!r}")
    return metric


def _check_options(
    first_index: object, first_pass: str, progress: object, score_dtype: object
) -> torch.dtype:
    """Those of one value; the dtype of the scores."""
    if check.as_integer("first_index", first_index) < 0:
        raise ValueError(f"first_index must be at least 0, got {first_index}")
    check.check_choice("first_pass", first_pass, FIRST_PASSES)
    if progress is not None:
        check.check_flag("progress", progress)
    name = str(score_dtype).removeprefix("torch.")
    check.check_choice("score_dtype", name, tuple(SCORE_DTYPES))
    return SCORE_DTYPES[name]


def _itself(queries: Tensor, source: Source) -> Tensor:
    """The number of each query in the gallery, which has to be the queries."""
    array = source.array
    if array is None or array.shape != queries.shape or array.dtype != queries.dtype:
        found = "chunks" if array is None else f"a gallery of shape {tuple(array.shape)}"
        raise ValueError(
            f"exclude_self needs the queries themselves as the gallery, an array of shape "
            f"{tuple(queries.shape)}, got {found}: give ids as query_group and gallery_group"
        )
    places = [(it.data_ptr(), it.stride(), it.device) for it in (array, queries)]
    if places[0] != places[1] and not _are_equal(array, queries):
        raise ValueError(
            "exclude_self needs the queries themselves as the gallery, got other numbers: give ids "
            "as query_group and gallery_group"
        )
    return torch.arange(queries.shape[0], device=queries.device)


def _are_equal(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, which makes NaN equal to itself; some rows at a time."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}.get(one.element_size(), torch.uint8)
    pieces = zip(one.split(8192), other.split(8192), strict=True)
    return all(
        torch.equal(a.contiguous().view(bits).to(b.device), b.contiguous().view(bits))
        for a, b in pieces
    )


def _result(queries: object, x: Tensor, found: Found, dtype: torch.dtype) -> TopK:
    """As arrays of the kind of the queries; NaN in a query makes its scores NaN."""
    scores, indices = found
    without = (indices[:, 0] < 0).nonzero()[:, 0]
    scores[without[x[without].isnan().any(1)]] = torch.nan
    return TopK(like(queries, scores.to(dtype)), like(queries, indices))
