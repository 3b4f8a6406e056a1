"""Bad input: an error that names the argument, what was expected and what came."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

import mmcore
from mmcore import functional

X, Y = torch.randn(4, 8), torch.randn(4, 8)
W = torch.randn(5, 8)
L = torch.arange(4)

BAD_CALLS: list[tuple[Callable[[], Any], type[Exception], str]] = [
    (lambda: functional.l2_normalize([1.0]), TypeError, "x must be a tensor, got list"),  # type: ignore[arg-type]
    (lambda: functional.l2_normalize(torch.arange(4)), TypeError, "x must be of a floating-point dtype, got int64"),
    (lambda: functional.l2_normalize(torch.tensor(1.0)), ValueError, "x must have at least 1 column"),
    (lambda: functional.l2_normalize(X, eps=0.0), ValueError, "eps must be finite and above 0, got 0.0"),
    (lambda: functional.l2_normalize(X, eps="1"), TypeError, "eps must be a number, got str"),  # type: ignore[arg-type]
    (lambda: functional.project(X, W.int()), TypeError, r"weight must be of a floating-point dtype, got int32: convert it, such as by weight\.float\(\)"),
    (lambda: functional.project(X, W[0]), ValueError, "weight must have 2 dimensions, got 1"),
    (lambda: functional.project(X, W[:, :7]), ValueError, "weight must have 8 columns to match x, got 7"),
    (lambda: functional.project(X, W[:0]), ValueError, r"weight must have at least 1 row, got shape \(0, 8\)"),
    (lambda: functional.project(X, W.double()), TypeError, "weight must have dtype float32 to match x, got float64"),
    (lambda: functional.project(X, W.to("meta")), ValueError, "weight must be on device cpu to match x, got meta"),
    (lambda: functional.project(X, W, torch.randn(4)), ValueError, r"bias must have shape \(5,\), got \(4,\)"),
    (lambda: functional.project(X, W, torch.randn(5).half()), TypeError, "bias must have dtype float32 to match x, or float32, got float16"),
    (lambda: functional.project(X, W, norm="batch"), ValueError, "norm must be 'layer', 'rms' or None, got 'batch'"),
    (lambda: functional.project(X, W, norm_weight=X[0]), ValueError, "norm must be 'layer' or 'rms' where norm_weight"),
    (lambda: functional.project(X, W, norm="rms", norm_bias=X[0]), ValueError, "norm_bias must be None with norm='rms'"),
    (lambda: functional.project(X, W, norm="layer", norm_bias=X), ValueError, r"norm_bias must have shape \(8,\), got \(4, 8\)"),
    (lambda: functional.project(X, W, norm="layer", norm_eps=-1.0), ValueError, "norm_eps must be finite and above 0"),
    (lambda: functional.project(X, W, normalize=1), TypeError, "normalize must be True or False, got int"),  # type: ignore[arg-type]
    (lambda: functional.softmax_similarity(X[0], Y), ValueError, "x must have 2 dimensions, got 1"),
    (lambda: functional.softmax_similarity(X, Y[:, :6]), ValueError, "y must have 8 columns to match x, got 6"),
    (lambda: functional.softmax_similarity(X, Y.double()), TypeError, "y must have dtype float32 to match x, got float64"),
    (lambda: functional.softmax_similarity(X, Y.long()), TypeError, "y must be of a floating-point dtype, got int64"),
    (lambda: functional.softmax_similarity(X, Y.to("meta")), ValueError, "y must be on device cpu to match x, got meta"),
    (lambda: functional.softmax_similarity(X, Y[:0]), ValueError, r"y must have at least 1 row, got shape \(0, 8\)"),
    (lambda: functional.softmax_similarity(X[:0], Y), ValueError, r"x must have at least 1 row, got shape \(0, 8\)"),
    (lambda: functional.softmax_similarity(X[:, :0], Y[:, :0]), ValueError, "x must have at least 1 column"),
    (lambda: functional.softmax_similarity(X, Y, torch.ones(2)), ValueError, r"scale must be a scalar, got shape \(2,\)"),
    (lambda: functional.softmax_similarity(X, Y, torch.tensor(True)), TypeError, "scale must be of a floating-point dtype, got bool"),
    (lambda: functional.softmax_similarity(X, Y, float("nan")), ValueError, "scale must be finite, got nan"),
    (lambda: functional.softmax_similarity(X, Y, float("inf")), ValueError, "scale must be finite, got inf"),
    (lambda: functional.softmax_similarity(X, Y, "1"), TypeError, "scale must be a number or a tensor, got str"),  # type: ignore[arg-type]
    (lambda: functional.softmax_similarity(X, Y, 1.0, float("-inf")), ValueError, "bias must be finite, got -inf"),
    (lambda: functional.softmax_similarity(X, Y, target=[0]), TypeError, "target must be a tensor, got list"),  # type: ignore[arg-type]
    (lambda: functional.softmax_similarity(X, Y, target=torch.ones(4)), TypeError, "target must be of an integer dtype up to int64, got float32"),
    (lambda: functional.softmax_similarity(X, Y, target=torch.arange(3)), ValueError, r"target must have shape \(4,\) to match the rows of x, got \(3,\)"),
    (lambda: functional.softmax_similarity(X, Y[:3]), ValueError, "target must be given where x has more rows than y: got 4 and 3"),
    (lambda: functional.softmax_similarity(X, Y, target=L, row_label=L, col_label=L), ValueError, "target must be None where row_label and col_label are given"),
    (lambda: functional.softmax_similarity(X, Y, row_label=L), ValueError, "col_label must be given together with the other side's, got None"),
    (lambda: functional.softmax_similarity(X, Y, col_group=L), ValueError, "row_group must be given together with the other side's, got None"),
    (lambda: functional.softmax_similarity(X, Y, row_label=L, col_label=L[:3]), ValueError, r"col_label must have shape \(4,\) to match the rows of y, got \(3,\)"),
    (lambda: functional.softmax_similarity(X, Y, row_label=L > 0, col_label=L), TypeError, "row_label must be of an integer dtype up to int64, got bool"),
    (lambda: functional.softmax_similarity(X, X, row_group=[0, 1, 2, 3]), TypeError, "row_group must be a tensor, got list"),  # type: ignore[arg-type]
    (lambda: functional.softmax_similarity(X, Y, row_bias=X[0]), ValueError, r"row_bias must have shape \(4,\), got \(8,\)"),
    (lambda: functional.softmax_similarity(X, Y, col_bias=torch.ones(4).half()), TypeError, "col_bias must have dtype float32 to match x, or float32, got float16"),
    (lambda: functional.softmax_similarity(X, Y, positives="mean"), ValueError, "positives must be one of 'sum', 'log_sum_exp', got 'mean'"),
    (lambda: functional.softmax_similarity(X, Y, positives="log_sum_exp"), ValueError, "positives must be 'sum' where there are no labels, got 'log_sum_exp'"),
    (lambda: functional.softmax_similarity(X, Y, denominator="none"), ValueError, "denominator must be one of 'all', 'negatives', 'positives', got 'none'"),
    (lambda: functional.softmax_similarity(X, Y, columns=0), TypeError, "columns must be True or False, got int"),  # type: ignore[arg-type]
    (lambda: functional.sigmoid_similarity(X, Y[:, :6]), ValueError, "y must have 8 columns to match x, got 6"),
    (lambda: functional.sigmoid_similarity(X, Y, float("nan")), ValueError, "scale must be finite, got nan"),
    (lambda: functional.sigmoid_similarity(X, Y, target=L.float()), TypeError, "target must be of an integer dtype up to int64, got float32"),
    (lambda: functional.clip_loss(X, Y[:3], 1.0), ValueError, "y must have 4 rows to match x, got 3"),
    (lambda: functional.clip_loss(X, Y, 1.0, backend="gpu"), ValueError, "backend must be one of auto, reference, cpu, triton, got 'gpu'"),
    (lambda: mmcore.nn.ProjectionHead(0, 4), ValueError, "in_features must be an integer of at least 1, got 0"),
    (lambda: mmcore.nn.ProjectionHead(4, 4, norm="batch"), ValueError, "norm must be 'layer', 'rms' or None"),
    (lambda: mmcore.nn.L2Normalize(eps=-1.0), ValueError, "eps must be finite and above 0, got -1.0"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "error", "message"), BAD_CALLS, ids=[m[:60] for *_, m in BAD_CALLS]
)
def test_bad_input_is_named(call: Callable[[], Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("outside", [-2, 4, 2**40])
def test_targets_out_of_range(on_host: str, outside: int) -> None:
    target = torch.tensor([0, 1, outside, 3])
    with pytest.raises(ValueError, match=rf"target must be in \[-1, 4\), got {outside}"):
        functional.softmax_similarity(X, Y, target=target)


def test_explicit_backend_that_cannot_serve_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"backend 'cpu' cannot serve this call: .* got float64"):
        functional.l2_normalize(X.double(), backend="cpu")


@pytest.mark.parametrize("outside", [-2, 4])
def test_targets_of_the_sigmoid_family_out_of_range(on_host: str, outside: int) -> None:
    target = torch.tensor([0, 1, outside, 3])
    with pytest.raises(ValueError, match=rf"target must be in \[-1, 4\), got {outside}"):
        functional.sigmoid_similarity(X, Y, target=target)


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (-1, ValueError, "size must be at least 0 bytes, got -1"),
        (1.5, TypeError, "size must be a whole number of bytes, got float 1.5"),
        (True, TypeError, "size must be a whole number of bytes, got bool True"),
        ("1", TypeError, "size must be a whole number of bytes, got str '1'"),
    ],
)
def test_workspace_is_a_number_of_bytes(size: int, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message), mmcore.workspace(size):
        pass


def test_unknown_backend_block() -> None:
    with pytest.raises(ValueError, match="got 'cuda'"), mmcore.backend("cuda"):
        pass
