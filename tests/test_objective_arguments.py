"""Bad input that every objective may be given: an error that says what came. NaN: test_nan.py."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any

import pytest
from objective_cases import Call, every_case
from torch import Tensor

from mmcore.bench.catalogue import ROWS, Case, filled
from mmcore.bench.catalogue.row import Path

# Where rows that have no positive take no part, each row is to have one.
USUAL = [
    next((case for case in row.cases() if case.variant.title), row.cases()[0])
    for row in ROWS.values()
]


def matrices(call: Call) -> list[Path]:
    return [path for path, leaf in call.leaves.items() if leaf.ndim > 1]


def changed(case: Case, change: Callable[[Tensor], Any]) -> list[Callable[[], Any]]:
    """Calls of which one matrix is changed, each in turn."""
    call = Call.of(case)
    function = case.function(call.width)
    return [
        lambda path=path: function(**filled(call.arguments, {path: change(call.leaves[path])}))
        for path in matrices(call)
    ]


@every_case(USUAL)
@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda z: z.tolist(), TypeError, "must be a tensor, got list"),
        (lambda z: z.long(), TypeError, "must be of a floating-point dtype, got int64"),
        (lambda z: z[0], ValueError, r"must have 2 dimensions, got 1|must have shape"),
        (lambda z: z[:0], ValueError, r"must have|got shape \(0, "),
    ],
    ids=["list", "int64", "one dimension", "no rows"],
)
def test_what_is_no_matrix_is_refused(
    case: Case, change: Callable[[Tensor], Any], error: type[Exception], message: str
) -> None:
    """Catches an objective that does not check one of its tensors."""
    for call in changed(case, change):
        with pytest.raises(error, match=message):
            call()


@every_case([case for case in USUAL if len(matrices(Call.of(case))) > 1])
def test_dtypes_must_match(case: Case) -> None:
    """Catches a side that is converted in silence, or that fails in the middle of a call."""
    for call in changed(case, Tensor.double):
        with pytest.raises(TypeError, match=r"must have dtype float(32|64) to match"):
            call()


@every_case([case for case in USUAL if "backend" in signature(case.row.function).parameters])
def test_the_backend_is_handed_on(case: Case) -> None:
    """Catches an objective that takes the option `backend` and drops it."""
    call = Call.of(case)
    with pytest.raises(ValueError, match="backend must be one of"):
        case.function(call.width)(**call.arguments, backend="gpu")
