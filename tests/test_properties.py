"""Random calls of the similarity ops against the reference in float64, on every machine."""

from __future__ import annotations

import hypothesis.strategies as st
import pytest
from machines import IS_GPU, RANDOM_CALLS
from random_calls import SIZES_OF_TRITON, Case, cases, check, check_bits
from random_similarity import SIMILARITY, SOFTMAX, Roundings, similarity_allowances, similarity_call

from mmcore import functional

SOFTMAX_CALLS, SIGMOID_CALLS = (
    RANDOM_CALLS[f"{name}_similarity"] for name in ("softmax", "sigmoid")
)


TWO_SIDES, ONE_SIDE = ({**SIMILARITY, "is_same": st.just(is_same)} for is_same in (False, True))


def check_softmax(case: Case) -> None:
    """Whatever the workspace keeps, the bits are the same, and as exact as they must be."""
    call = similarity_call(case, functional.softmax_similarity)
    first, second = (call.run_kernel(case, size) for size in case.options["workspaces"])
    check_bits(first, second)
    check(call, first, similarity_allowances(case, call, Roundings.of_cpu(case)))


@cases(SOFTMAX_CALLS["best"], **SIMILARITY, **SOFTMAX)
def test_softmax_similarity(best: str, threads: None, case: Case) -> None:
    check_softmax(case)


@cases(SOFTMAX_CALLS["others"], **SIMILARITY, **SOFTMAX)
def test_softmax_similarity_elsewhere(others: str, threads: None, case: Case) -> None:
    check_softmax(case)


def check_sigmoid(case: Case) -> None:
    """The same bits twice; what a workspace keeps may change them, but not the error's bound."""
    call = similarity_call(case, functional.sigmoid_similarity)
    size, other = case.options["workspaces"]
    first = call.run_kernel(case, size)
    check_bits(first, call.run_kernel(case, size))
    allowances = similarity_allowances(case, call, Roundings.of_cpu(case))
    check(call, first, allowances)
    check(call, call.run_kernel(case, other), allowances)


@cases(SIGMOID_CALLS["best"], **SIMILARITY)
def test_sigmoid_similarity(best: str, threads: None, case: Case) -> None:
    check_sigmoid(case)


@cases(SIGMOID_CALLS["others"], **SIMILARITY)
def test_sigmoid_similarity_elsewhere(others: str, threads: None, case: Case) -> None:
    check_sigmoid(case)


def check_on_triton(case: Case, function: object) -> None:
    """One workspace a call: the interpreter is slow."""
    pytest.importorskip("triton")
    call = similarity_call(case, function)
    workspace = case.options["workspaces"][0]
    actual = call.run_kernel(case, workspace, "triton")
    check(call, actual, similarity_allowances(case, call, Roundings.of_triton(case, workspace)))


interpreted = pytest.mark.skipif(IS_GPU, reason="the cases and their numbers are those of a CPU")


@interpreted
@cases(SOFTMAX_CALLS["triton"] // 2, SIZES_OF_TRITON, **TWO_SIDES, **SOFTMAX)
def test_softmax_similarity_on_triton(threads: None, case: Case) -> None:
    check_on_triton(case, functional.softmax_similarity)


@interpreted
@cases(SOFTMAX_CALLS["triton"] // 2, SIZES_OF_TRITON, **ONE_SIDE, **SOFTMAX)
def test_softmax_similarity_where_y_is_x_on_triton(threads: None, case: Case) -> None:
    check_on_triton(case, functional.softmax_similarity)


@interpreted
@cases(SIGMOID_CALLS["triton"], SIZES_OF_TRITON, **SIMILARITY)
def test_sigmoid_similarity_on_triton(threads: None, case: Case) -> None:
    check_on_triton(case, functional.sigmoid_similarity)
