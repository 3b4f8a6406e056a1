"""The fast tier covers what tiers.py says: covering arrays, and the backends of this very suite."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from machines import IS_FULL
from tiers import COLLECTED, backends_by_test, covering

PARAMETERS = {"kind": "abc", "dtype": "xyz", "is_same": "01", "size": "1234"}
PRODUCT = [dict(zip(PARAMETERS, values, strict=True)) for values in product(*PARAMETERS.values())]


@pytest.mark.parametrize("strength", [1, 2])
@pytest.mark.parametrize("start", [0, 29])
def test_every_combination_is_covered_by_few_cases(strength: int, start: int) -> None:
    chosen = [PRODUCT[i] for i in covering(PRODUCT, strength, start)]
    for names in combinations(PARAMETERS, strength):
        wanted = set(product(*(PARAMETERS[name] for name in names)))
        assert {tuple(case[name] for name in names) for case in chosen} == wanted
    assert len(chosen) <= {1: 4, 2: 16}[strength]  # the least that is possible: 4 and 12


def test_combinations_that_no_case_has_are_not_missed() -> None:
    cases = [case for case in PRODUCT if (case["kind"], case["dtype"]) != ("a", "x")]
    chosen = [cases[i] for i in covering(cases, 2)]
    assert len({(case["kind"], case["dtype"]) for case in chosen}) == 8


@pytest.mark.skipif(IS_FULL, reason="the full tier leaves nothing out")
def test_every_test_runs_on_each_of_its_backends(request: pytest.FixtureRequest) -> None:
    """A rule of tiers.py that leaves out a whole test, or a backend of it, would go unnoticed."""
    everything, kept = request.config.stash[COLLECTED]
    wanted = [item for item in everything if item.get_closest_marker("full") is None]
    assert backends_by_test(wanted) == backends_by_test(kept)
