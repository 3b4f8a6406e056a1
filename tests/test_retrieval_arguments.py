"""Bad arguments of search get an error that names them, before anything is computed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from mmcore.retrieval import (
    Gallery,
    TopK,
    csls_bias,
    inverted_softmax_bias,
    merge,
    open_features,
    recall_of,
    to_faiss,
    topk,
)

X, Y = torch.ones(3, 8), torch.ones(5, 8)
IDS = torch.arange(5)

BAD_SEARCHES: dict[str, tuple[dict[str, Any], str]] = {
    "k of 0": ({"k": 0}, "k must be at least 1, got 0"),
    "k of 2.5": ({"k": 2.5}, "k must be an integer, got float"),
    "k of True": ({"k": True}, "k must be an integer, got bool"),
    "width": ({"gallery": torch.ones(5, 9)}, "gallery must have 8 columns to match queries, got 9"),
    "dtype": (
        {"gallery": Y.half()},
        "gallery must have dtype float32 to match queries, got float16: convert the queries to "
        "float16, or the gallery to float32",
    ),
    "integers": ({"gallery": Y.int()}, "gallery must be of a floating-point dtype, got int32"),
    "a number": ({"gallery": 3}, "gallery must be a torch tensor, .* or an iterable of chunks"),
    "a mapping": ({"gallery": {"a": Y}}, "gallery must be .* got dict"),
    "metric": ({"metric": "dot"}, "metric must be one of 'inner_product', 'cosine', 'l2'"),
    "another metric": (
        {"gallery": Gallery(Y, metric="cosine"), "metric": "l2"},
        "metric must be 'cosine', as of the Gallery, got 'l2'",
    ),
    "bias": ({"gallery_bias": torch.ones(4)}, r"gallery_bias must have shape \(5,\) .* got \(4,\)"),
    "bias of integers": ({"gallery_bias": IDS}, "gallery_bias must be of a floating-point dtype"),
    "bias by parts": ({"gallery_bias": [IDS]}, "gallery_bias must be an array for a gallery that"),
    "two biases": (
        {"gallery": Gallery(Y, bias=torch.ones(5)), "gallery_bias": torch.ones(5)},
        "gallery_bias must be None where the Gallery has its own",
    ),
    "one group": ({"query_group": IDS[:3]}, "query_group and gallery_group must be given together"),
    "short group": (
        {"query_group": IDS[:2], "gallery_group": IDS},
        r"query_group must have shape \(3,\) to match the rows of queries, got \(2,\)",
    ),
    "group of numbers": (
        {"query_group": X[:, 0], "gallery_group": IDS},
        "query_group must be of an integer dtype up to int64, got float32",
    ),
    "self of another size": (
        {"exclude_self": True},
        r"exclude_self needs the queries themselves .* got a gallery of shape \(5, 8\): give ids",
    ),
    "self of other numbers": (
        {"exclude_self": True, "gallery": torch.zeros(3, 8)},
        "exclude_self needs the queries themselves as the gallery, got other numbers",
    ),
    "self of chunks": ({"exclude_self": True, "gallery": [X]}, "exclude_self .* got chunks"),
    "self of 1": ({"exclude_self": 1}, "exclude_self must be True or False, got int"),
    "score_dtype": ({"score_dtype": "float16"}, "score_dtype must be one of 'float32', 'float64'"),
    "first_index": ({"first_index": -1}, "first_index must be at least 0, got -1"),
    "progress": ({"progress": "yes"}, "progress must be True or False, got str"),
    "first_pass": ({"first_pass": "int4"}, "first_pass must be one of 'auto', 'full', 'int8'"),
    "backend": ({"backend": "mps"}, "backend must be one of"),
    "process_group": ({"process_group": "world"}, "torch.distributed is not initialised"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_SEARCHES)
def test_searches(name: str) -> None:
    """Catches an argument that is clamped, ignored or found out by a kernel."""
    options, message = BAD_SEARCHES[name]
    with pytest.raises((TypeError, ValueError), match=message):
        topk(**({"queries": X, "gallery": Y, "k": 2} | options))


def part(**options: Any) -> TopK:
    return topk(X, Y, 2, **({"score_dtype": "float64"} | options))


BAD_PARTS: dict[str, tuple[Any, str]] = {
    "none": ([], "parts must have at least 1 result, got none"),
    "rounded": ([part(), part(score_dtype="float32")], "part 1 must have float64 scores, got float32"),
    "queries": (
        [part(), topk(X[:2], Y, 2, first_index=5, score_dtype="float64")],
        "parts must be of the same queries, got 3 rows in part 0 and 2 in part 1",
    ),
    "twice": ([part(), part()], "item 0 twice for query 0: give each part .* as first_index"),
    "no result": ([torch.ones(3)], "parts must be results of topk, got Tensor as part 0"),
    "indices": ([TopK(torch.ones(3, 2).double(), IDS[:3])], "indices of one shape"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_PARTS)
def test_parts(name: str) -> None:
    """Catches parts that cannot be merged exactly, and shards that count from 0 twice."""
    parts, message = BAD_PARTS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        merge(parts, 2)


class Index:
    def __init__(self, numbers: Any) -> None:
        self.numbers = numbers

    def search(self, queries: Any, k: int) -> Any:
        return None, self.numbers


BAD_CALLS: dict[str, tuple[Any, str]] = {
    "csls of nothing": (lambda: csls_bias(X[:0], Y), "bank must have at least 1 row without NaN"),
    "csls of NaN": (lambda: csls_bias(X * torch.nan, Y), "bank must have at least 1 row without NaN"),
    "csls of an iterator": (lambda: csls_bias(iter([X]), [Y]), "bank must be an array, or chunks that"),
    "csls k": (lambda: csls_bias(X, Y, 0), "k must be at least 1"),
    "softmax of nothing": (lambda: inverted_softmax_bias(X[:0], Y, 1.0), "bank must have at least 1 row"),
    "softmax of chunks": (lambda: inverted_softmax_bias([X], Y, 1.0), "bank must be an array or a path"),
    "scale": (lambda: inverted_softmax_bias(X, Y, 0.0), "scale must be finite and above 0, got 0"),
    "temperature": (lambda: inverted_softmax_bias(X, Y, temperature=1.0), "give scale = 1 / temperature"),
    "softmax width": (lambda: inverted_softmax_bias(X, Y[:, :4], 1.0), "gallery must have 8 columns"),
    "bank with a bias": (lambda: csls_bias(Gallery(Y, bias=Y[:, 0]), Y), "bank must have no bias of its own"),
    "softmax of cosines": (lambda: inverted_softmax_bias(Y, Gallery(Y, metric="cosine"), 1.0), "for inner products, got a Gallery for cosine"),
    "no index": (lambda: recall_of(X, X, Y, 2), "index must have a method search, got Tensor"),
    "recall of chunks": (lambda: recall_of(Index(None), X, [Y], 2), "gallery must be an array"),
    "its shape": (lambda: recall_of(Index(IDS), X, Y, 2), r"indices of shape \(3, 2\), got \(5,\)"),
    "its numbers": (lambda: recall_of(Index([[9, 0]] * 3), X, Y, 2), "numbers of the 5 rows .* got 9"),
    "faiss metric": (lambda: to_faiss(Y, "dot"), "metric must be one of"),
    "faiss bias": (lambda: to_faiss(Gallery(Y, bias=Y[:, 0])), "must have no bias and no groups"),
    "gallery of chunks": (lambda: Gallery([Y]), "features of a Gallery must be an array or a path"),
    "gallery metric": (lambda: Gallery(Y, metric="dot"), "metric must be one of"),
    "gallery group": (lambda: Gallery(Y, group=IDS[:2]), r"group must have shape \(5,\)"),
    "gallery parts": (lambda: Gallery(Y, bias=[Y[:, 0]]), "bias must be an array"),
    "features": (lambda: open_features(Y), "source must be a path, a table of pyarrow or a dataset"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_CALLS)
def test_calls(name: str) -> None:
    """Catches the same in the other functions."""
    call, message = BAD_CALLS[name]
    with pytest.raises((TypeError, ValueError), match=message):
        call()
