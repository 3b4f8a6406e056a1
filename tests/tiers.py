"""Which cases of a test the fast tier runs: a covering array, chosen from those that pytest made.

A case is one choice of a value for each parameter. A covering array of strength 2 contains every
pair of values of two parameters in at least one case: most faults need one option or two together,
and a product of all options repeats each pair many times (Kuhn, Wallace & Gallo, "Software Fault
Interactions and Implications for Software Testing", IEEE TSE 2004).

- `@pytest.mark.op`: every pair of values, for each of the reference, the CPU kernels and Triton by
  itself. Instruction sets share one source, so that the instruction set is one more parameter.
  Triton's interpreter gets no matrix of more than MOST_INTERPRETED_ROWS rows.
- `@pytest.mark.objective`: every pair of values on the best instruction set; each value once on the
  reference and on Triton, where the objective's own code is the same. With `one_case=True`, one
  case of each objective on Triton, and where no backend is a parameter.
- `@pytest.mark.full`: nothing.

A case of the catalogue counts as several parameters: each objective is covered by itself, and each
axis of its variants is a parameter.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations

import pytest
from machines import IS_GPU, MOST_INTERPRETED_ROWS

from mmcore.bench.catalogue import Case

Values = Mapping[str, object]
MACHINE_PARAMETERS = ("backend", "compiled", "on_host", "machine")
# Of an objective tested on one case, any kind of input serves: it changes from test to test.
FREE_PARAMETERS = ("kind",)
ROW_PARAMETERS = ("rows", "columns", "shape")  # of a shape the first number

# Of pytest's configuration: the items before and after the selection.
COLLECTED = pytest.StashKey[tuple[list[pytest.Item], list[pytest.Item]]]()


def covering(cases: Sequence[Values], strength: int, start: int = 0) -> list[int]:
    """Indices of few cases that together contain all that `cases` contain of `strength` values.

    The greedy choice: always the case with the most combinations that are still missing; `start`
    says where the search for it begins.
    """
    found = [_combinations(case, strength) for case in cases]
    missing = set().union(*found)
    order = [(start + i) % len(cases) for i in range(len(cases))]
    chosen: list[int] = []
    while missing:
        best = max(order, key=lambda i: len(found[i] & missing))
        chosen.append(best)
        missing -= found[best]
    return sorted(chosen)


def _combinations(case: Values, strength: int) -> set[tuple[tuple[str, object], ...]]:
    values = sorted(case.items(), key=lambda each: each[0])
    return set(combinations(values, min(strength, len(values))))


def selected(items: Iterable[pytest.Item], available: Collection[str]) -> set[pytest.Item]:
    """The items of the fast tier; `available`: the instruction sets of this machine, best first."""
    groups: dict[tuple[str, str], list[pytest.Item]] = defaultdict(list)
    kept: set[pytest.Item] = set()
    best = f"cpu-{next(iter(available), '')}"
    for item in items:
        machine = _machine_of(item)
        is_absent = machine.startswith("cpu-") and machine.removeprefix("cpu-") not in available
        if item.get_closest_marker("full") is not None or _is_far_over_a_tile(item, machine):
            continue
        if not _parameters(item):
            kept.add(item)
        elif item.get_closest_marker("op") is not None:
            if not is_absent:
                groups[_subject_of(item), machine.split("-")[0]].append(item)
        elif item.get_closest_marker("objective") is not None:
            if not machine.startswith("cpu-") or machine == best:
                groups[_subject_of(item), machine].append(item)
        else:
            kept.add(item)
    for (_, machine), group in groups.items():
        kept.update(_covered(group, machine))
    return kept


def backends_by_test(items: Iterable[pytest.Item]) -> set[tuple[str, str]]:
    """The tests, each with the backends of its items."""
    return {(_test_of(item), _machine_of(item).split("-")[0]) for item in items}


def _covered(group: Sequence[pytest.Item], machine: str) -> list[pytest.Item]:
    """Few items of one test on one machine that stand for all of them."""
    cases, name = [_values(item) for item in group], _subject_of(group[0])
    is_objective = group[0].get_closest_marker("op") is None
    start = zlib.crc32(f"{name} {machine}".encode()) % len(group)
    if not is_objective or machine.startswith("cpu"):
        return [group[i] for i in covering(cases, 2, start)]
    fixed = [{k: v for k, v in case.items() if k not in FREE_PARAMETERS} for case in cases]
    marker = group[0].get_closest_marker("objective")
    is_one_enough = machine != "reference" and marker is not None and "one_case" in marker.kwargs
    return [group[i] for i in covering(fixed, 0 if is_one_enough else 1, start)]


def _is_far_over_a_tile(item: pytest.Item, machine: str) -> bool:
    if machine != "triton" or IS_GPU or item.get_closest_marker("op") is None:
        return False
    values = [_parameters(item).get(name) for name in ROW_PARAMETERS]
    rows = [value[0] if isinstance(value, tuple) else value for value in values]
    return any(isinstance(count, int) and count > MOST_INTERPRETED_ROWS for count in rows)


def _test_of(item: pytest.Item) -> str:
    return item.nodeid.split("[")[0]


def _subject_of(item: pytest.Item) -> str:
    """The test, with the objective that is tested where the catalogue names it."""
    names = [each.row.name for each in _parameters(item).values() if isinstance(each, Case)]
    return " ".join([_test_of(item), *names])


def _values(item: pytest.Item) -> dict[str, object]:
    """Parameters by name; a value that may not be hashable is represented by its identity."""
    found: dict[str, object] = {}
    for name, value in _parameters(item).items():
        of_variant = value.axes if isinstance(value, Case) else {name: value}
        found |= {
            axis: each if isinstance(each, (bool, int, float, str)) else id(each)
            for axis, each in of_variant.items()
        }
    return found


def _parameters(item: pytest.Item) -> dict[str, object]:
    specification = getattr(item, "callspec", None)
    return {} if specification is None else specification.params


def _machine_of(item: pytest.Item) -> str:
    parameters = _parameters(item)
    return next((str(parameters[name]) for name in MACHINE_PARAMETERS if name in parameters), "")
