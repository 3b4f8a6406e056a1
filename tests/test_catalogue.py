"""The catalogue has every objective, and its rows are right in themselves."""

from __future__ import annotations

import inspect
from collections import Counter

import pytest
import torch
from objective_cases import WIDTH, every_case

from mmcore import functional, nn
from mmcore.bench.catalogue import CASES, ROWS, Case, Draw, Row

OBJECTIVES = [name for name in functional.__all__ if name.endswith("_loss")]
every_row = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_has_a_row(name: str) -> None:
    """Catches an objective that no test and no benchmark knows."""
    assert name in ROWS, (
        f"{name} has no row: add Row(functional.{name}, nn.<its module>, <its plain formula>, "
        "<its inputs>, <variants of its call>) to the file of its family in "
        "mmcore/bench/catalogue/, and to the ROWS there"
    )


def test_rows_are_of_public_functions_and_modules() -> None:
    """Catches a row of what is not public, and a public module without a row."""
    assert set(ROWS) == set(OBJECTIVES)
    modules = {name for name in nn.__all__ if name.endswith("Loss")}
    assert {row.module.__name__ for row in ROWS.values()} == modules


def test_names_differ() -> None:
    """Catches two variants of one name, of which only one would be tested."""
    assert len(CASES) == sum(len(row.variants) for row in ROWS.values())
    titles = Counter(case.variant.title for case in CASES.values() if case.variant.title)
    assert not [title for title, count in titles.items() if count > 1]


@every_row
def test_axes_tell_variants_apart(row: Row) -> None:
    """Catches axes that are equal, of which the fast tier would take one."""
    axes = [tuple(sorted(case.axes.items())) for case in row.cases()]
    assert len(set(axes)) == len(axes)


@every_row
def test_the_formula_has_the_signature_of_the_function(row: Row) -> None:
    """Catches a formula whose options have other defaults."""
    ours, plain = (inspect.signature(each).parameters for each in (row.function, row.plain))
    assert set(plain) <= set(ours)
    for name, parameter in plain.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert parameter.default == ours[name].default


@every_case([case for case in CASES.values() if case.is_large])
def test_large_inputs_grow_with_their_rows(case: Case) -> None:
    """Catches labels or a vocabulary that stay small where rows are many."""
    arguments = case.arguments(Draw(64, WIDTH))
    longest = max(len(leaf) for leaf in case.leaves(arguments).values() if leaf.ndim > 1)
    assert longest <= 64 * case.variant.columns
    assert torch.isfinite(torch.tensor(case.flops(64, WIDTH)))


@every_case([case for case in CASES.values() if case.variant.title])
def test_what_is_timed_has_peers_and_work(case: Case) -> None:
    """Catches a title without anything beside mmcore, or without products."""
    assert case.variant.peers
    assert case.flops(64, WIDTH) > 0
